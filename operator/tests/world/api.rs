//! An API server in memory, as far as the operator uses one: objects by path, selectors by label and by field, server-side apply as a deep merge, merge patches,
//! preconditions, finalizers, generations. It knows no schemas and no watches.

use http::{Method, Request, Response, StatusCode};
use http_body_util::BodyExt;
use kube::Client;
use kube::client::Body;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

/// See the module.
#[derive(Clone, Default)]
pub struct Api {
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    objects: BTreeMap<String, Value>,
    version: u64,
    /// Method and path of everything that changed something.
    changes: Vec<String>,
}

impl Api {
    /// A client of it.
    pub fn client(&self) -> Client {
        let api = self.clone();
        let service = tower::service_fn(move |request: Request<Body>| {
            let api = api.clone();
            async move { Ok::<_, std::io::Error>(api.answer(request).await) }
        });
        Client::new(service, "sheepdog")
    }

    async fn answer(&self, request: Request<Body>) -> Response<Body> {
        let (head, body) = request.into_parts();
        let bytes = body.collect().await.unwrap().to_bytes();
        let body: Value = serde_json::from_slice(&bytes).unwrap_or(Value::Null);
        let kind = head.headers.get("content-type").map(|v| v.to_str().unwrap_or("").to_owned());
        let query: BTreeMap<String, String> = head
            .uri
            .query()
            .unwrap_or_default()
            .split('&')
            .filter_map(|p| p.split_once('='))
            .map(|(k, v)| (k.to_owned(), decode(v)))
            .collect();
        let path = head.uri.path().to_owned();
        let mut state = self.state.lock().unwrap();
        let (code, value) = state.handle(&head.method, &path, &query, kind.as_deref(), body);
        Response::builder()
            .status(code)
            .header("content-type", "application/json")
            .body(Body::from(serde_json::to_vec(&value).unwrap()))
            .unwrap()
    }

    /// What is at a path.
    pub fn get(&self, path: &str) -> Option<Value> {
        self.state.lock().unwrap().objects.get(path).cloned()
    }
    /// Everything below a path.
    pub fn list(&self, path: &str) -> Vec<Value> {
        let state = self.state.lock().unwrap();
        state.children(path).map(|(_, v)| v.clone()).collect()
    }
    /// Put something there, as a user or another controller would.
    pub fn put(&self, path: &str, value: Value) {
        let mut state = self.state.lock().unwrap();
        let stored = state.stamp(path, value);
        state.objects.insert(path.to_owned(), stored);
    }
    /// Change something there.
    pub fn edit(&self, path: &str, change: impl FnOnce(&mut Value)) {
        let mut value = self.get(path).unwrap();
        change(&mut value);
        self.put(path, value);
    }
    /// Take it away.
    pub fn remove(&self, path: &str) {
        self.state.lock().unwrap().objects.remove(path);
    }
    /// Ask for a deletion.
    pub fn delete(&self, path: &str) {
        self.state.lock().unwrap().delete(path);
    }
    /// What changed something since the last call.
    pub fn changes(&self) -> Vec<String> {
        std::mem::take(&mut self.state.lock().unwrap().changes)
    }
}

fn decode(text: &str) -> String {
    let mut out = Vec::new();
    let mut bytes = text.bytes();
    while let Some(b) = bytes.next() {
        match b {
            b'+' => out.push(b' '),
            b'%' => {
                let hex: Vec<u8> = bytes.by_ref().take(2).collect();
                out.push(u8::from_str_radix(std::str::from_utf8(&hex).unwrap(), 16).unwrap());
            }
            b => out.push(b),
        }
    }
    String::from_utf8(out).unwrap()
}

fn failure(code: StatusCode, reason: &str) -> (StatusCode, Value) {
    (
        code,
        json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": reason, "message": reason, "code": code.as_u16()}),
    )
}

/// Maps are merged, everything else is replaced; null deletes.
fn merge(into: &mut Value, from: &Value) {
    match (into, from) {
        (Value::Object(a), Value::Object(b)) => {
            for (k, v) in b {
                if v.is_null() {
                    a.remove(k);
                } else {
                    merge(a.entry(k.clone()).or_insert(Value::Null), v);
                }
            }
        }
        (into, from) => *into = from.clone(),
    }
}

fn selected(object: &Value, query: &BTreeMap<String, String>) -> bool {
    let labels = object["metadata"]["labels"].as_object().cloned().unwrap_or_default();
    let by_label = query.get("labelSelector").is_none_or(|s| {
        s.split(',').filter(|p| !p.is_empty()).all(|p| match p.split_once('=') {
            Some((k, v)) => labels.get(k).and_then(Value::as_str) == Some(v),
            None => labels.contains_key(p),
        })
    });
    let by_field = query.get("fieldSelector").is_none_or(|s| {
        s.split(',').filter_map(|p| p.split_once('=')).all(|(k, v)| {
            k.split('.').try_fold(object, |o, part| o.get(part)).and_then(Value::as_str) == Some(v)
        })
    });
    by_label && by_field
}

impl State {
    fn children(&self, path: &str) -> impl Iterator<Item = (&String, &Value)> {
        let prefix = format!("{}/", path.trim_end_matches('/'));
        self.objects.iter().filter(move |(p, _)| p.strip_prefix(&prefix).is_some_and(|r| !r.contains('/')))
    }

    /// With what a server adds.
    fn stamp(&mut self, path: &str, mut value: Value) -> Value {
        self.version += 1;
        let old = self.objects.get(path);
        let generation = old.and_then(|o| o["metadata"]["generation"].as_u64()).unwrap_or(0);
        let same = old.is_some_and(|o| o["spec"] == value["spec"]);
        let uid = old.and_then(|o| o["metadata"]["uid"].as_str().map(str::to_owned));
        let meta = value.as_object_mut().unwrap().entry("metadata").or_insert_with(|| json!({}));
        let meta: &mut Map<String, Value> = meta.as_object_mut().unwrap();
        meta.insert("resourceVersion".into(), json!(self.version.to_string()));
        meta.insert("generation".into(), json!(generation + u64::from(!same)));
        let uid = uid.unwrap_or_else(|| uuid::Uuid::new_v4().to_string());
        meta.insert("uid".into(), json!(uid));
        meta.entry("creationTimestamp").or_insert_with(|| json!("2030-01-01T00:00:00Z"));
        value
    }

    fn delete(&mut self, path: &str) {
        let Some(mut object) = self.objects.remove(path) else { return };
        if object["metadata"]["finalizers"].as_array().is_some_and(|f| !f.is_empty()) {
            object["metadata"]["deletionTimestamp"] = json!("2030-01-01T00:00:01Z");
            let stamped = self.stamp(path, object);
            self.objects.insert(path.to_owned(), stamped);
        }
    }

    fn store(&mut self, path: &str, value: Value) -> Value {
        let stamped = self.stamp(path, value);
        let finalizers = stamped["metadata"]["finalizers"].as_array().map_or(0, Vec::len);
        if stamped["metadata"].get("deletionTimestamp").is_some() && finalizers == 0 {
            self.objects.remove(path);
        } else {
            self.objects.insert(path.to_owned(), stamped.clone());
        }
        stamped
    }

    fn handle(
        &mut self,
        method: &Method,
        path: &str,
        query: &BTreeMap<String, String>,
        content: Option<&str>,
        body: Value,
    ) -> (StatusCode, Value) {
        if method != Method::GET {
            self.changes.push(format!("{method} {path}"));
        }
        match *method {
            Method::GET => self.read(path, query),
            Method::POST => {
                let name = body["metadata"]["name"].as_str().unwrap_or_default();
                let at = format!("{path}/{name}");
                if self.objects.contains_key(&at) {
                    return failure(StatusCode::CONFLICT, "AlreadyExists");
                }
                (StatusCode::CREATED, self.store(&at, body))
            }
            Method::PUT => {
                let Some(old) = self.objects.get(path) else {
                    return failure(StatusCode::NOT_FOUND, "NotFound");
                };
                if old["metadata"]["resourceVersion"] != body["metadata"]["resourceVersion"] {
                    return failure(StatusCode::CONFLICT, "Conflict");
                }
                (StatusCode::OK, self.store(path, body))
            }
            Method::PATCH => self.patch(path, content.unwrap_or_default(), &body),
            Method::DELETE => {
                let Some(old) = self.objects.get(path) else {
                    return failure(StatusCode::NOT_FOUND, "NotFound");
                };
                let wanted = &body["preconditions"]["uid"];
                if wanted.is_string() && *wanted != old["metadata"]["uid"] {
                    return failure(StatusCode::CONFLICT, "Conflict");
                }
                let answer = old.clone();
                self.delete(path);
                (StatusCode::OK, answer)
            }
            _ => failure(StatusCode::METHOD_NOT_ALLOWED, "MethodNotAllowed"),
        }
    }

    fn read(&self, path: &str, query: &BTreeMap<String, String>) -> (StatusCode, Value) {
        if let Some(object) = self.objects.get(path) {
            return (StatusCode::OK, object.clone());
        }
        let parts: Vec<&str> = path.trim_matches('/').split('/').collect();
        // /api/v1/X, /apis/G/V/X, and the same under namespaces/N: a collection; one more: an object. /apis/G/V: which kinds there are.
        let rest = if parts[0] == "api" { 2 } else { 3 };
        let rest =
            if parts.get(rest) == Some(&"namespaces") && parts.len() > rest + 2 { rest + 2 } else { rest };
        match parts.len().saturating_sub(rest) {
            1 => {
                let items: Vec<&Value> =
                    self.children(path).map(|(_, v)| v).filter(|v| selected(v, query)).collect();
                (StatusCode::OK, json!({"kind": "List", "apiVersion": "v1", "metadata": {}, "items": items}))
            }
            _ => failure(StatusCode::NOT_FOUND, "NotFound"),
        }
    }

    fn patch(&mut self, path: &str, content: &str, body: &Value) -> (StatusCode, Value) {
        let (path, status_only) = match path.strip_suffix("/status") {
            Some(p) => (p, true),
            None => (path, false),
        };
        let old = self.objects.get(path).cloned();
        if old.is_none() && (status_only || !content.contains("apply")) {
            return failure(StatusCode::NOT_FOUND, "NotFound");
        }
        let mut new = old.unwrap_or_else(|| json!({}));
        let version = body["metadata"]["resourceVersion"].as_str();
        if version.is_some_and(|v| new["metadata"]["resourceVersion"] != v) {
            return failure(StatusCode::CONFLICT, "Conflict");
        }
        if status_only {
            new["status"] = body["status"].clone();
        } else if content.contains("apply") {
            // One manager owns the whole spec.
            for (key, value) in body.as_object().unwrap() {
                if key == "metadata" {
                    merge(&mut new["metadata"], value);
                } else {
                    new[key.as_str()] = value.clone();
                }
            }
        } else {
            merge(&mut new, body);
        }
        (StatusCode::OK, self.store(path, new))
    }
}
