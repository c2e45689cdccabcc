//! Which Kubernetes, as whom, in which namespace: as kubectl decides it.

use crate::failure::Failure;
use kube::config::{Config, KubeConfigOptions, Kubeconfig};
use std::path::PathBuf;
use std::time::Duration;

/// A cluster that is there answers sooner.
const CONNECT: Duration = Duration::from_secs(15);

/// Options that every command takes.
#[derive(clap::Args, Debug, Clone)]
pub struct Connection {
    /// File that says how to reach Kubernetes (default: KUBECONFIG, then ~/.kube/config)
    #[arg(long, global = true, value_name = "FILE", help_heading = "Kubernetes")]
    pub kubeconfig: Option<PathBuf>,
    /// Which of its contexts
    #[arg(long, global = true, value_name = "NAME", help_heading = "Kubernetes")]
    pub context: Option<String>,
    /// Namespace: of what `why` is asked about (default: the context's); for other commands, of the SheepdogCluster (default: wherever it is)
    #[arg(short, long, global = true, value_name = "NAME", help_heading = "Kubernetes")]
    pub namespace: Option<String>,
}

/// An open connection.
#[derive(Clone)]
pub struct Connected {
    /// Client.
    pub client: kube::Client,
    /// Namespace that was named.
    pub named: Option<String>,
    /// Namespace of the context.
    pub default: String,
}

impl Connection {
    /// Read the configuration. Nothing is asked yet.
    pub async fn open(&self) -> Result<Connected, Failure> {
        let mut config = self.config().await?;
        config.connect_timeout = Some(CONNECT);
        let default = config.default_namespace.clone();
        let client = kube::Client::try_from(config)
            .map_err(|e| Failure::new(format!("the kubeconfig cannot be used: {e}")))?;
        Ok(Connected { client, named: self.namespace.clone(), default })
    }

    async fn config(&self) -> Result<Config, Failure> {
        let options = KubeConfigOptions { context: self.context.clone(), ..KubeConfigOptions::default() };
        let bad = |e: &dyn std::fmt::Display| {
            Failure::new(format!("no kubeconfig: {e}"))
                .hint("set KUBECONFIG, or give --kubeconfig FILE; does kubectl itself work?")
        };
        match &self.kubeconfig {
            Some(file) => {
                let read = Kubeconfig::read_from(file).map_err(|e| bad(&e))?;
                Config::from_custom_kubeconfig(read, &options).await.map_err(|e| bad(&e))
            }
            // In a pod there is none, and the pod's own account is meant.
            None if self.context.is_none() => Config::infer().await.map_err(|e| bad(&e)),
            None => Config::from_kubeconfig(&options).await.map_err(|e| bad(&e)),
        }
    }
}

impl Connected {
    /// Namespace of what is asked about.
    pub fn namespace(&self) -> &str {
        self.named.as_deref().unwrap_or(&self.default)
    }
}
