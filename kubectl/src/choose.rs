//! Which SheepdogCluster is meant, and a pod of it that can be asked.

use crate::connect::Connected;
use crate::failure::Failure;
use crate::read::{self, Trouble};
use crate::words::{is_ready, name, namespace};
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::api::ListParams;
use sheepdog_crds::{CLUSTER, COMPONENT, SheepdogCluster};

/// All clusters, of the namespace that was named or of all.
pub async fn list(c: &Connected) -> Result<Vec<SheepdogCluster>, Trouble> {
    let api: Api<SheepdogCluster> = match &c.named {
        Some(ns) => Api::namespaced(c.client.clone(), ns),
        None => Api::all(c.client.clone()),
    };
    read::list(&api, ListParams::default()).await
}

/// The same, for what depends on it.
pub async fn clusters(c: &Connected) -> Result<Vec<SheepdogCluster>, Failure> {
    list(c).await.map_err(|t| {
        let f = Failure::of("SheepdogClusters cannot be listed", &t);
        match t {
            Trouble::Forbidden(_) if c.named.is_none() => {
                f.hint("name the namespace that you may read with -n NAMESPACE")
            }
            _ => f,
        }
    })
}

/// The one that is meant.
pub async fn one(c: &Connected, wanted: Option<&str>) -> Result<SheepdogCluster, Failure> {
    pick(clusters(c).await?, wanted)
}

/// Decide. Pure.
fn pick(all: Vec<SheepdogCluster>, wanted: Option<&str>) -> Result<SheepdogCluster, Failure> {
    let full = |c: &SheepdogCluster| format!("{}/{}", namespace(c), name(c));
    let names: Vec<String> = all.iter().map(full).collect();
    let mut fit = all.into_iter().filter(|c| wanted.is_none_or(|w| name(c) == w));
    let there = if names.is_empty() { "none".to_owned() } else { names.join(", ") };
    match (fit.next(), fit.next()) {
        (Some(c), None) => Ok(c),
        (None, _) => {
            let what = wanted.map_or_else(String::new, |w| format!(" {w}"));
            Err(Failure::new(format!("there is no SheepdogCluster{what}; there are: {there}")).hint(
                "-n NAMESPACE says where to look (default: everywhere); docs/kubernetes.md says how one is made",
            ))
        }
        (Some(_), Some(_)) => Err(Failure::new(format!("there are several SheepdogClusters: {there}"))
            .hint("say which with -n NAMESPACE and the cluster's name")),
    }
}

/// A ready pod of a sheep, or else of a gateway.
pub async fn sheep(c: &Connected, cluster: &SheepdogCluster) -> Result<Pod, Failure> {
    let (me, ns) = (name(cluster), namespace(cluster));
    let api: Api<Pod> = Api::namespaced(c.client.clone(), &ns);
    for component in ["sheep", "gateway"] {
        let labels = format!("{CLUSTER}={me},{COMPONENT}={component}");
        let pods = read::list(&api, ListParams::default().labels(&labels)).await;
        let pods = pods.map_err(|t| Failure::of(&format!("pods of {ns} cannot be listed"), &t))?;
        if let Some(ready) = pods.into_iter().find(is_ready) {
            return Ok(ready);
        }
    }
    Err(Failure::new(format!("no sheep of SheepdogCluster {ns}/{me} is ready"))
        .hint(format!("see kubectl sheepdog status -n {ns} {me}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn cluster(ns: &str, name: &str) -> SheepdogCluster {
        serde_json::from_value(json!({"apiVersion": "sheepdog.io/v1alpha1", "kind": "SheepdogCluster",
            "metadata": {"name": name, "namespace": ns}, "spec": {"nodeGroups": [{}]}}))
        .unwrap()
    }

    #[test]
    fn one_cluster_needs_no_name() {
        assert_eq!(pick(vec![cluster("a", "x")], None).map(|c| name(&c)), Ok("x".into()));
        let two = || vec![cluster("a", "x"), cluster("b", "y")];
        assert_eq!(pick(two(), Some("y")).map(|c| namespace(&c)), Ok("b".into()));
        let e = pick(two(), None).unwrap_err();
        assert!(e.message.contains("a/x, b/y"), "{e:?}");
        assert!(pick(two(), Some("z")).unwrap_err().message.contains("no SheepdogCluster z; there are: a/x"));
        assert!(pick(vec![], None).unwrap_err().message.contains("there are: none"));
    }
}
