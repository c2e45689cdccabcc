//! Reading from the API server: pages, limits, and errors as words. What cannot be read is a value, not the end.

use kube::Api;
use kube::api::ListParams;
use serde::de::DeserializeOwned;
use std::fmt::{self, Debug};
use std::future::Future;
use std::time::Duration;

const PAGE: u32 = 500;
/// Objects of one list: more would be neither read nor shown.
const MOST: usize = 50_000;
/// A request that takes longer is given up.
const PATIENCE: Duration = Duration::from_secs(60);

/// Why something could not be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Trouble {
    /// No permission.
    Forbidden(String),
    /// There is no such object.
    Missing,
    /// The API server does not know such objects.
    NoSuchKind,
    /// It did not answer.
    Unreachable(String),
    /// Anything else.
    Other(String),
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Forbidden(why) => write!(f, "no permission: {why}"),
            Self::Missing => f.write_str("it does not exist"),
            Self::NoSuchKind => f.write_str("Kubernetes does not know this kind of object"),
            Self::Unreachable(why) => write!(f, "the API server cannot be reached: {why}"),
            Self::Other(why) => f.write_str(why),
        }
    }
}

impl From<kube::Error> for Trouble {
    fn from(e: kube::Error) -> Self {
        match e {
            kube::Error::Api(s) if s.code == 403 => Self::Forbidden(s.message.clone()),
            kube::Error::Api(s) if s.code == 401 => {
                Self::Forbidden(format!("the API server does not know you ({})", s.message))
            }
            kube::Error::Api(s) if s.code == 404 => {
                // Of a kind that is not there the server knows no name.
                let known = s.details.as_ref().is_some_and(|d| !d.name.is_empty());
                if known { Self::Missing } else { Self::NoSuchKind }
            }
            kube::Error::Api(s) => Self::Other(s.message.clone()),
            kube::Error::Service(e) => Self::Unreachable(chain(&*e)),
            kube::Error::HyperError(e) => Self::Unreachable(chain(&e)),
            e @ kube::Error::Auth(_) => Self::Unreachable(chain(&e)),
            other => Self::Other(chain(&other)),
        }
    }
}

/// An error with its sources.
fn chain(e: &dyn std::error::Error) -> String {
    let mut text = e.to_string();
    let mut next = e.source();
    while let Some(e) = next {
        let more = e.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        next = e.source();
    }
    text
}

/// A request, for a limited time.
pub async fn limited<T>(ask: impl Future<Output = Result<T, kube::Error>>) -> Result<T, Trouble> {
    match tokio::time::timeout(PATIENCE, ask).await {
        Ok(answer) => answer.map_err(Trouble::from),
        Err(_) => Err(Trouble::Unreachable(format!("no answer within {} s", PATIENCE.as_secs()))),
    }
}

/// All objects.
pub async fn list<K>(api: &Api<K>, params: ListParams) -> Result<Vec<K>, Trouble>
where
    K: Clone + Debug + DeserializeOwned,
{
    let mut params = params.limit(PAGE);
    let mut all = Vec::new();
    loop {
        let page = limited(api.list(&params)).await?;
        all.extend(page.items);
        match page.metadata.continue_.filter(|t| !t.is_empty()) {
            _ if all.len() >= MOST => return Ok(all),
            Some(token) => params = params.continue_token(&token),
            None => return Ok(all),
        }
    }
}

/// One object; nothing when there is none.
pub async fn get<K>(api: &Api<K>, name: &str) -> Result<Option<K>, Trouble>
where
    K: Clone + Debug + DeserializeOwned,
{
    match limited(api.get(name)).await {
        Ok(k) => Ok(Some(k)),
        Err(Trouble::Missing) => Ok(None),
        Err(e) => Err(e),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn api(code: u16, message: &str, name: &str) -> Trouble {
        let status = json!({"status": "Failure", "message": message, "reason": "x", "code": code, "details": {"name": name}});
        Trouble::from(kube::Error::Api(serde_json::from_value(status).unwrap()))
    }

    #[test]
    fn answers_of_the_api_server_become_words() {
        assert_eq!(api(403, "nodes is forbidden", ""), Trouble::Forbidden("nodes is forbidden".into()));
        assert!(matches!(api(401, "Unauthorized", ""), Trouble::Forbidden(_)));
        assert_eq!(api(404, "x", "data"), Trouble::Missing);
        assert_eq!(api(404, "the server could not find the requested resource", ""), Trouble::NoSuchKind);
        assert_eq!(api(500, "etcd is gone", "").to_string(), "etcd is gone");
    }
}
