//! The cluster, as the driver uses it: `sheepdog_client` with volumes by CSI's ids.

use crate::fault::{Fault, Outcome};
use sheepdog_client::pb::*;
use sheepdog_client::{Client, ConnectOptions, Credentials, Error, ErrorKind, Role};
use std::path::Path;
use std::time::Duration;
use uuid::Uuid;

/// Nothing is waited for longer in one request: sidecars give up after one or two minutes, and ask again.
const DEADLINE: Duration = Duration::from_secs(50);

/// See the module. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Sheep {
    client: Client,
}

impl Sheep {
    /// Connects when the first request is made. `addresses`: `HOST[:PORT]`, any sheep of the cluster.
    pub fn new(addresses: &[String], secret: Option<&Path>) -> anyhow::Result<Self> {
        let addresses = addresses.iter().map(|a| a.trim()).filter(|a| !a.is_empty()).map(with_port).collect();
        let mut options = ConnectOptions::new(addresses);
        options.deadline = DEADLINE;
        if let Some(file) = secret {
            options = options.credentials(&Credentials::load(file)?, &Role::Other("csi".into()))?;
        }
        Ok(Self { client: Client::lazy(options)? })
    }

    /// For requests that need nothing more than this.
    pub fn client(&self) -> &Client {
        &self.client
    }

    async fn get(&self, vdi: VdiRef) -> Outcome<Option<Vdi>> {
        match self.client.get_vdi(GetVdiRequest { vdi: Some(vdi), usage: false }).await {
            Ok(v) => Ok(Some(v)),
            Err(Error { kind: ErrorKind::Missing, .. }) => Ok(None),
            Err(e) => Err(e.into()),
        }
    }

    /// A VDI, also when only its snapshots are left.
    pub async fn any(&self, id: Uuid) -> Outcome<Option<Vdi>> {
        self.get(VdiRef::uuid(id.to_string())).await
    }

    /// A volume.
    pub async fn volume(&self, id: Uuid) -> Outcome<Option<Vdi>> {
        Ok(self.any(id).await?.filter(|v| v.working))
    }

    /// A volume that has to be there.
    pub async fn the_volume(&self, id: &str) -> Outcome<Vdi> {
        let missing = || Fault::not_found(format!("there is no volume {id}"));
        let parsed = crate::names::required_volume(id)?.ok_or_else(missing)?;
        self.volume(parsed).await?.ok_or_else(missing)
    }

    /// A VDI by name, also when only its snapshots are left.
    pub async fn named(&self, name: &str) -> Outcome<Option<Vdi>> {
        self.get(VdiRef::name(name)).await
    }

    /// Every VDI.
    pub async fn all(&self) -> Outcome<Vec<Vdi>> {
        Ok(self.client.all_vdis("", false).await?)
    }

    /// Set an attribute.
    pub async fn set(&self, vdi: u32, key: &str, value: &[u8]) -> Outcome<()> {
        let request = SetAttrRequest {
            vdi: Some(VdiRef::id(vdi)),
            key: key.into(),
            value: Some(value.to_vec()),
            exclusive: false,
        };
        // The same value again is the same: a broken connection does no harm.
        match self.client.set_attr(request.clone()).await {
            Err(e) if e.kind == ErrorKind::Unreachable => self.client.set_attr(request).await?,
            done => done?,
        };
        Ok(())
    }

    /// Let it be used so fast, from now on and where it is in use.
    pub async fn limit(&self, v: &Vdi, limits: Limits) -> Outcome<()> {
        if v.limits.unwrap_or_default() == limits {
            return Ok(());
        }
        let request = SetLimitsRequest { vdi: Some(VdiRef::id(v.id)), limits: Some(limits) };
        self.client.set_limits(request).await?;
        tracing::info!(volume = v.uuid, ?limits, "limits changed");
        Ok(())
    }

    /// Does this image hold nothing but zeros that were never written? Asked of every node that may have an object of it.
    pub async fn is_blank(&self, vdi: u32, snapshot: &str) -> Outcome<bool> {
        let request = MapRequest { vdi: Some(VdiRef::id(vdi)), snapshot: snapshot.into() };
        let mut rows = self.client.map(request).await?;
        loop {
            match rows.message().await {
                Ok(Some(row)) if row.bytes > 0 => return Ok(false),
                Ok(Some(_)) => {}
                Ok(None) => return Ok(true),
                Err(s) => return Err(self.client.explain(s).into()),
            }
        }
    }

    /// Let an owner that died be replaced: the first read does it.
    pub async fn settle(&self, vdi: u32) -> Outcome<()> {
        let request = ReadRequest { vdi: Some(VdiRef::id(vdi)), length: Some(4096), ..Default::default() };
        let mut chunks = self.client.read(request).await?;
        while chunks.message().await.map_err(|s| self.client.explain(s))?.is_some() {}
        Ok(())
    }
}

fn with_port(address: &str) -> String {
    // A bare IPv6 address has colons of its own.
    match address.rsplit_once(':') {
        Some((host, port)) if port.parse::<u16>().is_ok() && (!host.contains(':') || host.ends_with(']')) => {
            address.to_owned()
        }
        _ if address.contains(':') && !address.starts_with('[') => format!("[{address}]:7000"),
        _ => format!("{address}:7000"),
    }
}

/// A volume's id.
pub fn id_of(v: &Vdi) -> Outcome<Uuid> {
    crate::names::volume_id(&v.uuid).ok_or_else(|| Fault::internal(format!("VDI {} has no UUID", v.name)))
}

/// An attribute as text.
pub fn attr<'a>(v: &'a Vdi, key: &str) -> Option<&'a str> {
    v.attrs.get(key).and_then(|b| std::str::from_utf8(b).ok())
}

#[cfg(test)]
mod tests {
    #[test]
    fn ports_are_added_where_there_is_none() {
        for (given, meant) in [
            ("a", "a:7000"),
            ("a:1", "a:1"),
            ("10.0.0.1", "10.0.0.1:7000"),
            ("fd00::1", "[fd00::1]:7000"),
            ("[fd00::1]:7", "[fd00::1]:7"),
            ("[fd00::1]", "[fd00::1]:7000"),
        ] {
            assert_eq!(super::with_port(given), meant);
        }
    }
}
