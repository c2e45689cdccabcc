//! The cluster secret: one small text file that makes a CA, and from it every identity.
//!
//! The file holds the CA's certificate and private key. A process that has it derives an identity of its own when it starts: a fresh key (never
//! written anywhere) and a certificate signed by the CA for the name `sheepdog`. All connections on the client and peer ports are mutual
//! TLS 1.3. NBD clients, which must not get the cluster secret, get a certificate without that name (`dog secret client-cert`): it opens
//! the NBD port and nothing else.
//!
//! What holds: nothing here prints a key; a file that others may read is refused; both sides prove themselves before a byte is believed.

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PKCS_ECDSA_P256_SHA256,
};
use rustls::client::danger::HandshakeSignatureValid;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    ClientConfig, DigitallySignedStruct, DistinguishedName, RootCertStore, ServerConfig, SignatureScheme,
};
use std::fmt;
use std::io::Write;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Name that every member of the cluster proves, whatever its address.
pub const SERVER_NAME: &str = "sheepdog";
/// A second name in the same certificates, asked for on peer links.
const PEER_NAME: &str = "sheep";
/// An identity outlives any process.
const IDENTITY_LIFE: Duration = Duration::from_secs(5 * 366 * 86_400);
/// Larger files are something else.
const MAX_FILE: u64 = 64 << 10;

/// Why there are no credentials. The text says what to do.
#[derive(Debug, thiserror::Error)]
pub enum CredentialsError {
    /// Cannot be read.
    #[error(
        "cannot read the secret file {path}: {source}: make one with `dog secret new -f {path}` or correct --secret-file"
    )]
    Read {
        /// File.
        path: PathBuf,
        /// Cause.
        source: std::io::Error,
    },
    /// Others may read it.
    #[error(
        "secret file {path} can be read by every user of this host (mode {mode:o}): run `chmod 600 {path}`"
    )]
    Permissions {
        /// File.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// Not what `dog secret new` writes.
    #[error("{path}: {reason}: expected the file that `dog secret new` wrote")]
    Format {
        /// File.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// There already.
    #[error(
        "{path} exists and is not overwritten: nodes that use it could not speak to those with a new one; choose another name with -f"
    )]
    Exists {
        /// File.
        path: PathBuf,
    },
    /// Cannot be written.
    #[error("cannot write {path}: {source}")]
    Write {
        /// File.
        path: PathBuf,
        /// Cause.
        source: std::io::Error,
    },
    /// The crypto library refused.
    #[error("cannot make a certificate: {0}")]
    Crypto(String),
}

fn crypto(e: impl fmt::Display) -> CredentialsError {
    CredentialsError::Crypto(e.to_string())
}

/// What an identity is for: goes into its certificate's common name, for logs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Role {
    /// A sheep, with its node id.
    Sheep(String),
    /// `dog`.
    Dog,
    /// Any other program that holds the secret (csi, operator, shepherd).
    Other(String),
}

impl Role {
    fn common_name(&self) -> String {
        match self {
            Self::Sheep(id) => format!("sheep {id}"),
            Self::Dog => "dog".into(),
            Self::Other(what) => what.clone(),
        }
    }
}

/// The cluster secret, in memory.
pub struct Credentials {
    ca: CertificateDer<'static>,
    ca_pem: String,
    key: KeyPair,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Credentials(..)")
    }
}

struct Identity {
    chain: Vec<CertificateDer<'static>>,
    cert_pem: String,
    key: KeyPair,
}

impl Identity {
    fn key_der(&self) -> PrivateKeyDer<'static> {
        PrivatePkcs8KeyDer::from(self.key.serialize_der()).into()
    }
}

impl Credentials {
    /// A new cluster's secret.
    pub fn generate() -> Result<Self, CredentialsError> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(crypto)?;
        let mut p = CertificateParams::default();
        p.not_before = rcgen::date_time_ymd(2020, 1, 1);
        p.not_after = rcgen::date_time_ymd(2120, 1, 1);
        p.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        p.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        // Part of the key's fingerprint, so that the CAs of two clusters are told apart by their names.
        let id: String = p.key_identifier(&key).iter().take(4).map(|b| format!("{b:02x}")).collect();
        p.distinguished_name.push(DnType::CommonName, format!("sheepdog cluster {id}"));
        let cert = p.self_signed(&key).map_err(crypto)?;
        Ok(Self { ca: cert.der().clone(), ca_pem: cert.pem(), key })
    }

    /// The file's contents. Secret!
    pub fn to_text(&self) -> String {
        format!(
            "# Sheepdog cluster secret. Whoever has this file can read and change every volume.\n# Give it to every sheep and to dog with --secret-file; keep a copy in a safe place.\n{}{}",
            self.ca_pem,
            self.key.serialize_pem()
        )
    }

    /// From the file's contents. The error says what is wrong with them.
    pub fn parse(text: &str) -> Result<Self, String> {
        let bytes = text.as_bytes();
        let mut certs = CertificateDer::pem_slice_iter(bytes);
        let ca = match certs.next() {
            Some(Ok(c)) => c,
            Some(Err(e)) => return Err(format!("the certificate in it is damaged ({e})")),
            None => return Err("there is no certificate in it".into()),
        };
        if certs.next().is_some() {
            return Err("there is more than one certificate in it".into());
        }
        let key = PrivateKeyDer::from_pem_slice(bytes)
            .map_err(|e| format!("there is no usable private key in it ({e})"))?;
        let key =
            KeyPair::try_from(&key).map_err(|e| format!("the private key in it is not usable ({e})"))?;
        let (_, parsed) = x509_parser::parse_x509_certificate(&ca)
            .map_err(|e| format!("the certificate in it is damaged ({e})"))?;
        if !parsed.is_ca() {
            return Err(
                "the certificate in it is not a CA (a client's certificate is not the cluster secret)".into(),
            );
        }
        if parsed.public_key().subject_public_key.data.as_ref() != key.public_key_raw() {
            return Err("certificate and private key do not belong together".into());
        }
        let ca_pem = pem("CERTIFICATE", &ca);
        Ok(Self { ca, ca_pem, key })
    }

    /// Read a secret file. One that everybody on the host may read is refused.
    pub fn load(path: &Path) -> Result<Self, CredentialsError> {
        let read = |source| CredentialsError::Read { path: path.into(), source };
        let file = std::fs::File::open(path).map_err(read)?;
        let meta = file.metadata().map_err(read)?;
        let mode = meta.permissions().mode() & 0o777;
        if mode & 0o007 != 0 {
            return Err(CredentialsError::Permissions { path: path.into(), mode });
        }
        let format = |reason: String| CredentialsError::Format { path: path.into(), reason };
        if meta.is_dir() {
            return Err(format("it is a directory".into()));
        }
        let mut bytes = Vec::new();
        std::io::Read::read_to_end(&mut std::io::Read::take(file, MAX_FILE + 1), &mut bytes).map_err(read)?;
        if bytes.len() as u64 > MAX_FILE {
            return Err(format("it is too large".into()));
        }
        let text = String::from_utf8(bytes).map_err(|_| format("it is not text".into()))?;
        Self::parse(&text).map_err(format)
    }

    /// Write a secret file, mode 0600. Never replaces one.
    pub fn save_new(&self, path: &Path) -> Result<(), CredentialsError> {
        write_new(path, &self.to_text(), 0o600)
    }

    /// Write `ca-cert.pem`, `client-cert.pem` and `client-key.pem` for an NBD client (the names that qemu and libnbd look for)
    /// into `dir`. They open the NBD port only.
    pub fn write_client_cert(&self, dir: &Path, name: &str) -> Result<(), CredentialsError> {
        let write = |source| CredentialsError::Write { path: dir.into(), source };
        std::fs::create_dir_all(dir).map_err(write)?;
        let mut p = CertificateParams::default();
        p.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        let id = self.sign(p, name, Duration::from_secs(10 * 366 * 86_400))?;
        write_new(&dir.join("client-key.pem"), &id.key.serialize_pem(), 0o600)?;
        write_new(&dir.join("client-cert.pem"), &id.cert_pem, 0o644)?;
        write_new(&dir.join("ca-cert.pem"), &self.ca_pem, 0o644)
    }

    /// TLS of the client and peer ports: TLS 1.3, only members of the cluster get in. HTTP/2 is offered for the admin interface;
    /// peer links do not negotiate a protocol.
    pub fn server_config(&self, role: &Role) -> Result<Arc<ServerConfig>, CredentialsError> {
        let identity = self.identity(role, &[])?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let inner = WebPkiClientVerifier::builder_with_provider(self.roots()?, provider.clone())
            .build()
            .map_err(crypto)?;
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(crypto)?
            .with_client_cert_verifier(Arc::new(MembersOnly(inner)))
            .with_single_cert(identity.chain.clone(), identity.key_der())
            .map_err(crypto)?;
        config.alpn_protocols = vec![b"h2".to_vec()];
        Ok(Arc::new(config))
    }

    /// The connecting side of the client and peer ports. The name to ask for is `SERVER_NAME`.
    pub fn client_config(&self, role: &Role) -> Result<Arc<ClientConfig>, CredentialsError> {
        let identity = self.identity(role, &[])?;
        let config = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(crypto)?
            .with_root_certificates(self.roots()?)
            .with_client_auth_cert(identity.chain.clone(), identity.key_der())
            .map_err(crypto)?;
        Ok(Arc::new(config))
    }

    /// TLS of the NBD port: 1.2 and 1.3, a client certificate of this cluster is required. `names` are the host names and addresses that
    /// clients use, besides `sheepdog`, `localhost` and the loopback addresses.
    pub fn nbd_server_config(
        &self,
        role: &Role,
        names: &[String],
    ) -> Result<Arc<ServerConfig>, CredentialsError> {
        let mut all: Vec<String> = vec!["localhost".into(), "127.0.0.1".into(), "::1".into()];
        all.extend(names.iter().filter(|n| !n.is_empty()).cloned());
        let identity = self.identity(role, &all)?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let verifier = WebPkiClientVerifier::builder_with_provider(self.roots()?, provider.clone())
            .build()
            .map_err(crypto)?;
        let config = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])
            .map_err(crypto)?
            .with_client_cert_verifier(verifier)
            .with_single_cert(identity.chain.clone(), identity.key_der())
            .map_err(crypto)?;
        Ok(Arc::new(config))
    }

    fn roots(&self) -> Result<Arc<RootCertStore>, CredentialsError> {
        let mut roots = RootCertStore::empty();
        roots.add(self.ca.clone()).map_err(crypto)?;
        Ok(Arc::new(roots))
    }

    fn identity(&self, role: &Role, names: &[String]) -> Result<Identity, CredentialsError> {
        let mut sans = vec![SERVER_NAME.to_owned(), PEER_NAME.to_owned()];
        for n in names {
            if !sans.contains(n) {
                sans.push(n.clone());
            }
        }
        let mut p = CertificateParams::new(sans).map_err(crypto)?;
        p.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        self.sign(p, &role.common_name(), IDENTITY_LIFE)
    }

    fn sign(
        &self,
        mut p: CertificateParams,
        name: &str,
        life: Duration,
    ) -> Result<Identity, CredentialsError> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(crypto)?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        // Long before now: hosts whose clocks differ still believe each other.
        p.not_before = rcgen::date_time_ymd(2020, 1, 1);
        p.not_after = rcgen::date_time_ymd(1970, 1, 1) + (now + life);
        p.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        p.use_authority_key_identifier_extension = true;
        p.distinguished_name.push(DnType::CommonName, name);
        let issuer = Issuer::from_ca_cert_der(&self.ca, &self.key).map_err(crypto)?;
        let cert = p.signed_by(&key, &issuer).map_err(crypto)?;
        Ok(Identity { chain: vec![cert.der().clone()], cert_pem: cert.pem(), key })
    }
}

/// Certificates of this CA that carry the members' name; those of NBD clients do not.
#[derive(Debug)]
struct MembersOnly(Arc<dyn ClientCertVerifier>);

impl ClientCertVerifier for MembersOnly {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.0.root_hint_subjects()
    }
    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        let verified = self.0.verify_client_cert(end_entity, intermediates, now)?;
        if names_member(end_entity) {
            Ok(verified)
        } else {
            Err(rustls::CertificateError::ApplicationVerificationFailure.into())
        }
    }
    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.0.verify_tls12_signature(message, cert, dss)
    }
    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.0.verify_tls13_signature(message, cert, dss)
    }
    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_verify_schemes()
    }
}

fn names_member(cert: &CertificateDer<'_>) -> bool {
    use x509_parser::extensions::GeneralName;
    let Ok((_, parsed)) = x509_parser::parse_x509_certificate(cert) else { return false };
    let Ok(Some(names)) = parsed.subject_alternative_name() else { return false };
    names.value.general_names.iter().any(|n| matches!(n, GeneralName::DNSName(d) if *d == SERVER_NAME))
}

fn write_new(path: &Path, text: &str, mode: u32) -> Result<(), CredentialsError> {
    let open = std::fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(path);
    let written = open.and_then(|mut f| {
        f.write_all(text.as_bytes())?;
        f.sync_all()
    });
    written.map_err(|source| match source.kind() {
        std::io::ErrorKind::AlreadyExists => CredentialsError::Exists { path: path.into() },
        _ => CredentialsError::Write { path: path.into(), source },
    })
}

fn pem(label: &str, der: &[u8]) -> String {
    const TABLE: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = format!("-----BEGIN {label}-----\n");
    for line in der.chunks(48) {
        for three in line.chunks(3) {
            let b = [three[0], *three.get(1).unwrap_or(&0), *three.get(2).unwrap_or(&0)];
            let n = u32::from_be_bytes([0, b[0], b[1], b[2]]);
            for i in 0..4 {
                let sextet = (n >> (18 - 6 * i)) as usize & 63;
                text.push(if i <= three.len() { TABLE[sextet] as char } else { '=' });
            }
        }
        text.push('\n');
    }
    text + &format!("-----END {label}-----\n")
}
