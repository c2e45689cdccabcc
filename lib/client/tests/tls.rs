//! Who gets in with which credentials, and what bad secret files are answered with.

#![allow(clippy::unwrap_used)]

use rustls::{ClientConfig, ServerConfig};
use sheepdog_client::credentials::{Credentials, CredentialsError, Role, SERVER_NAME};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// Shake hands and send one byte each way: under TLS 1.3 a client only learns by reading whether it was let in.
async fn try_tls(server: Arc<ServerConfig>, client: Arc<ClientConfig>, name: &str) -> Result<(), String> {
    let (a, b) = tokio::io::duplex(64 << 10);
    let serve = async move {
        let mut s = tokio_rustls::TlsAcceptor::from(server).accept(a).await?;
        let mut byte = [0];
        s.read_exact(&mut byte).await?;
        s.write_all(&byte).await?;
        s.flush().await
    };
    let name = rustls::pki_types::ServerName::try_from(name.to_owned()).unwrap();
    let connect = async move {
        let mut s = tokio_rustls::TlsConnector::from(client).connect(name, b).await?;
        s.write_all(b"x").await?;
        s.flush().await?;
        let mut byte = [0];
        s.read_exact(&mut byte).await
    };
    let (served, connected) = tokio::join!(serve, connect);
    served.map_err(|e| format!("server: {e}"))?;
    connected.map_err(|e| format!("client: {e}"))?;
    Ok(())
}

fn sheep() -> Role {
    Role::Sheep("7b1c".into())
}

/// The same CA on the client's side, but without a certificate of its own.
fn anonymous(secret: &Credentials) -> Arc<ClientConfig> {
    let dir = tempfile::tempdir().unwrap();
    secret.write_client_cert(dir.path(), "vm").unwrap();
    let mut roots = rustls::RootCertStore::empty();
    use rustls::pki_types::pem::PemObject;
    roots
        .add(rustls::pki_types::CertificateDer::from_pem_file(dir.path().join("ca-cert.pem")).unwrap())
        .unwrap();
    Arc::new(provider().with_root_certificates(roots).with_no_client_auth())
}

fn provider() -> rustls::ConfigBuilder<ClientConfig, rustls::WantsVerifier> {
    ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])
        .unwrap()
}

/// A client that shows the files made for qemu and libnbd.
fn nbd_client(dir: &Path, versions: &[&'static rustls::SupportedProtocolVersion]) -> Arc<ClientConfig> {
    use rustls::pki_types::pem::PemObject;
    use rustls::pki_types::{CertificateDer, PrivateKeyDer};
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(dir.join("ca-cert.pem")).unwrap()).unwrap();
    let cert = CertificateDer::from_pem_file(dir.join("client-cert.pem")).unwrap();
    let key = PrivateKeyDer::from_pem_file(dir.join("client-key.pem")).unwrap();
    let config = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_protocol_versions(versions)
        .unwrap()
        .with_root_certificates(roots)
        .with_client_auth_cert(vec![cert], key)
        .unwrap();
    Arc::new(config)
}

#[tokio::test]
async fn members_get_in_and_nobody_else() {
    let secret = Credentials::generate().unwrap();
    // What a second process would read from the file is as good as the original.
    let copy = Credentials::parse(&secret.to_text()).unwrap();
    let server = secret.server_config(&sheep()).unwrap();

    try_tls(server.clone(), copy.client_config(&Role::Dog).unwrap(), SERVER_NAME).await.unwrap();
    try_tls(server.clone(), copy.client_config(&sheep()).unwrap(), "sheep").await.unwrap();

    let other = Credentials::generate().unwrap();
    let refused = try_tls(server.clone(), other.client_config(&Role::Dog).unwrap(), SERVER_NAME).await;
    assert!(refused.is_err(), "another cluster's credentials were accepted");

    let refused = try_tls(server.clone(), anonymous(&secret), SERVER_NAME).await;
    assert!(refused.is_err(), "a client without a certificate was accepted");

    let refused = try_tls(server, copy.client_config(&Role::Dog).unwrap(), "elsewhere").await;
    assert!(refused.is_err(), "the server proved a name that is not its own");
}

#[tokio::test]
async fn an_nbd_clients_certificate_opens_the_nbd_port_only() {
    let secret = Credentials::generate().unwrap();
    let dir = tempfile::tempdir().unwrap();
    secret.write_client_cert(dir.path(), "vm 1").unwrap();
    let nbd = secret.nbd_server_config(&sheep(), &["10.1.2.3".into(), "sheep1.example".into()]).unwrap();
    for versions in [&[&rustls::version::TLS13], &[&rustls::version::TLS12]] {
        for name in [SERVER_NAME, "localhost", "127.0.0.1", "10.1.2.3", "sheep1.example"] {
            try_tls(nbd.clone(), nbd_client(dir.path(), versions), name).await.unwrap();
        }
    }
    assert!(try_tls(nbd, anonymous(&secret), SERVER_NAME).await.is_err());
    let admin = secret.server_config(&sheep()).unwrap();
    let refused = try_tls(admin, nbd_client(dir.path(), &[&rustls::version::TLS13]), SERVER_NAME).await;
    assert!(refused.is_err(), "an NBD client's certificate opened the admin port");
}

#[tokio::test]
async fn tls_below_1_3_is_refused_between_members() {
    let secret = Credentials::generate().unwrap();
    let dir = tempfile::tempdir().unwrap();
    secret.write_client_cert(dir.path(), "vm").unwrap();
    let admin = secret.server_config(&sheep()).unwrap();
    let old = nbd_client(dir.path(), &[&rustls::version::TLS12]);
    let text = try_tls(admin, old, SERVER_NAME).await.unwrap_err();
    assert!(text.contains("Tls12NotOffered"), "{text}");
}

#[test]
fn the_file_is_private_and_never_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("secret");
    let secret = Credentials::generate().unwrap();
    secret.save_new(&path).unwrap();
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    Credentials::load(&path).unwrap();

    let again = secret.save_new(&path).unwrap_err();
    assert!(matches!(again, CredentialsError::Exists { .. }), "{again}");

    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
    let open = Credentials::load(&path).unwrap_err().to_string();
    assert!(open.contains("chmod 600") && open.contains("secret"), "{open}");
    // A group may read it: that is how Kubernetes mounts secrets for a user.
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o640)).unwrap();
    Credentials::load(&path).unwrap();
}

#[test]
fn bad_files_are_named_and_explained() {
    let dir = tempfile::tempdir().unwrap();
    let missing = Credentials::load(&dir.path().join("none")).unwrap_err().to_string();
    assert!(missing.contains("none") && missing.contains("dog secret new"), "{missing}");
    assert!(Credentials::load(dir.path()).is_err(), "a directory");

    let good = Credentials::generate().unwrap().to_text();
    let other = Credentials::generate().unwrap().to_text();
    let (cert, key) = good.split_once("-----BEGIN PRIVATE").unwrap();
    let (_, other_key) = other.split_once("-----BEGIN PRIVATE").unwrap();
    let cases = [
        ("".to_owned(), "no certificate"),
        ("hello".to_owned(), "no certificate"),
        (cert.to_owned(), "private key"),
        (format!("-----BEGIN PRIVATE{key}"), "no certificate"),
        (format!("{cert}-----BEGIN PRIVATE{other_key}"), "do not belong together"),
        (format!("{cert}{good}"), "more than one"),
        (good.replace("MII", "AAA"), "damaged"),
    ];
    for (text, want) in cases {
        let path = dir.path().join("bad");
        std::fs::write(&path, &text).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        let said = Credentials::load(&path).unwrap_err().to_string();
        assert!(said.contains(want) && said.contains("bad"), "wanted {want:?}: {said}");
    }
}

#[test]
fn keys_are_not_printed() {
    let secret = Credentials::generate().unwrap();
    assert_eq!(format!("{secret:?}"), "Credentials(..)");
}
