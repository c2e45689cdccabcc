//! The cluster's certificate authority, the certificates that it gives, and the kubeconfig files made of them.

use anyhow::{Context as _, Result};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use serde_json::json;
use std::path::{Path, PathBuf};

/// Where everything lies; the names of files are those of a certificate.
#[derive(Debug)]
pub struct Pki {
    dir: PathBuf,
    issuer: Issuer<'static, KeyPair>,
}

impl Pki {
    /// A new authority, and the key that signs tokens of service accounts.
    pub fn new(dir: &Path) -> Result<Self> {
        std::fs::create_dir_all(dir)?;
        let key = KeyPair::generate()?;
        let mut p = params(&[])?;
        p.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        p.key_usages =
            vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign, KeyUsagePurpose::DigitalSignature];
        p.distinguished_name.push(DnType::CommonName, "kubernetes");
        let cert = p.self_signed(&key)?;
        let me = |issuer| Self { dir: dir.to_owned(), issuer };
        std::fs::write(dir.join("ca.crt"), cert.pem())?;
        std::fs::write(dir.join("ca.key"), key.serialize_pem())?;
        let tokens = KeyPair::generate()?;
        std::fs::write(dir.join("tokens.key"), tokens.serialize_pem())?;
        std::fs::write(dir.join("tokens.pub"), tokens.public_key_pem())?;
        Ok(me(Issuer::new(p, key)))
    }

    /// A file by its name.
    pub fn path(&self, name: &str) -> String {
        self.dir.join(name).display().to_string()
    }

    /// `NAME.crt` and `NAME.key` for a user (and its group), and for a server where there are names that it goes by.
    pub fn give(&self, name: &str, user: &str, group: &str, servers: &[&str]) -> Result<()> {
        let key = KeyPair::generate()?;
        let mut p = params(servers)?;
        p.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        p.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth];
        p.distinguished_name.push(DnType::CommonName, user);
        if !group.is_empty() {
            p.distinguished_name.push(DnType::OrganizationName, group);
        }
        let cert = p.signed_by(&key, &self.issuer)?;
        std::fs::write(self.dir.join(format!("{name}.crt")), cert.pem())?;
        std::fs::write(self.dir.join(format!("{name}.key")), key.serialize_pem())?;
        Ok(())
    }

    /// A certificate for a user, and the kubeconfig with it: its path.
    pub fn kubeconfig(&self, name: &str, user: &str, group: &str, server: &str) -> Result<String> {
        self.give(name, user, group, &[])?;
        // YAML takes JSON.
        let config = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "lab",
            "clusters": [{"name": "lab", "cluster": {
                "server": server, "certificate-authority": self.path("ca.crt")}}],
            "users": [{"name": user, "user": {
                "client-certificate": self.path(&format!("{name}.crt")),
                "client-key": self.path(&format!("{name}.key"))}}],
            "contexts": [{"name": "lab", "context": {"cluster": "lab", "user": user}}],
        });
        let file = format!("{name}.kubeconfig");
        std::fs::write(self.dir.join(&file), serde_json::to_string_pretty(&config)?).context(file.clone())?;
        Ok(self.path(&file))
    }
}

fn params(servers: &[&str]) -> Result<CertificateParams> {
    let names: Vec<String> = servers.iter().map(|s| (*s).to_owned()).collect();
    let mut p = CertificateParams::new(names)?;
    // Long before now: the clock of a test machine may be anywhere.
    p.not_before = rcgen::date_time_ymd(2020, 1, 1);
    p.not_after = rcgen::date_time_ymd(2120, 1, 1);
    p.use_authority_key_identifier_extension = true;
    Ok(p)
}
