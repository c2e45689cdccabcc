//! Server-side apply with one field manager. What was applied a moment ago is not applied again, so that a look at a cluster that is as it should be costs the
//! API server nothing.

use crate::names::MANAGER;
use kube::api::{Api, DeleteParams, DynamicObject, Patch, PatchParams};
use kube::core::ApiResource;
use kube::{Client, Resource, ResourceExt};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::collections::HashMap;
use std::fmt::Debug;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};
use xxhash_rust::xxh3::xxh3_64;

/// So long a change that somebody else made may stand.
const AGAIN: Duration = Duration::from_secs(120);
/// Objects that are remembered.
const REMEMBERED: usize = 16_384;

/// Applies objects.
pub struct Applier {
    client: Client,
    done: Mutex<HashMap<String, (u64, Instant)>>,
}

impl Applier {
    /// With this client.
    pub fn new(client: Client) -> Self {
        Self { client, done: Mutex::default() }
    }

    fn is_new(&self, key: &str, hash: u64) -> bool {
        let done = self.done.lock().unwrap_or_else(PoisonError::into_inner);
        done.get(key).is_none_or(|(h, at)| *h != hash || at.elapsed() > AGAIN)
    }

    fn note(&self, key: String, hash: u64) {
        let mut done = self.done.lock().unwrap_or_else(PoisonError::into_inner);
        if done.len() >= REMEMBERED {
            done.clear();
        }
        done.insert(key, (hash, Instant::now()));
    }

    /// Forget what was applied: somebody changed one of our objects.
    pub fn forget(&self) {
        self.done.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    async fn apply_to<K>(&self, api: &Api<K>, object: &K, kind: &str) -> Result<(), kube::Error>
    where
        K: Resource + Clone + Debug + Serialize + DeserializeOwned,
    {
        let name = object.name_any();
        let text = serde_json::to_vec(object).map_err(kube::Error::SerdeError)?;
        let (key, hash) =
            (format!("{kind}/{}/{name}", object.namespace().unwrap_or_default()), xxh3_64(&text));
        if !self.is_new(&key, hash) {
            return Ok(());
        }
        api.patch(&name, &PatchParams::apply(MANAGER).force(), &Patch::Apply(object)).await?;
        self.note(key, hash);
        Ok(())
    }

    /// An object in a namespace.
    pub async fn apply<K>(&self, object: &K) -> Result<(), kube::Error>
    where
        K: Resource<DynamicType = (), Scope = kube::core::NamespaceResourceScope>
            + Clone
            + Debug
            + Serialize
            + DeserializeOwned,
    {
        let api = Api::namespaced(self.client.clone(), &object.namespace().unwrap_or_default());
        self.apply_to(&api, object, &K::kind(&())).await
    }

    /// An object without a namespace.
    pub async fn apply_wide<K>(&self, object: &K) -> Result<(), kube::Error>
    where
        K: Resource<DynamicType = (), Scope = kube::core::ClusterResourceScope>
            + Clone
            + Debug
            + Serialize
            + DeserializeOwned,
    {
        self.apply_to(&Api::all(self.client.clone()), object, &K::kind(&())).await
    }

    /// An object without a namespace, of a kind that we have no type for.
    pub async fn apply_dynamic(&self, object: &DynamicObject, kind: &ApiResource) -> Result<(), kube::Error> {
        self.apply_to(&Api::all_with(self.client.clone(), kind), object, &kind.kind).await
    }
}

/// Delete, if it is there.
pub async fn delete<K>(api: &Api<K>, name: &str) -> Result<(), kube::Error>
where
    K: Clone + Debug + DeserializeOwned,
{
    match api.delete(name, &DeleteParams::background()).await {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(s)) if s.code == 404 => Ok(()),
        Err(e) => Err(e),
    }
}
