//! `dog secret new` and `dog secret client-cert`

use crate::failure::Failure;
use crate::output::{Cell, Output, Record};
use clap::Subcommand;
use sheepdog_client::Credentials;
use std::path::PathBuf;

/// Credentials
#[derive(Subcommand, Debug)]
pub enum Command {
    /// Make a new cluster's secret: one file that every sheep and dog needs
    ///
    /// Whoever has it can read and change every volume. It is written with mode 0600 and never overwritten.
    New {
        /// Where to write it
        #[arg(short, long, default_value = "sheepdog.secret", value_name = "FILE")]
        file: PathBuf,
    },
    /// Make a certificate for an NBD client (qemu, libnbd, nbd-client) that opens the NBD port and nothing else
    ///
    /// Writes ca-cert.pem, client-cert.pem and client-key.pem. Give the directory to qemu (tls-creds-x509 with dir=DIR,endpoint=client, and
    /// tls-hostname=sheepdog) or to libnbd (nbds://HOST?tls-certificates=DIR).
    ClientCert {
        /// Directory to write to; made if missing
        dir: PathBuf,
        /// The cluster's secret
        #[arg(short, long, value_name = "FILE", env = "DOG_SECRET_FILE", default_value = "sheepdog.secret")]
        file: PathBuf,
        /// Name of the client, for logs
        #[arg(long, default_value = "nbd client")]
        name: String,
    },
}

impl Command {
    /// Do it. No sheep is needed.
    pub fn run(self) -> Result<Output, Failure> {
        match self {
            Self::New { file } => {
                Credentials::generate()?.save_new(&file)?;
                Ok(Output::Done(written("file", file)))
            }
            Self::ClientCert { dir, file, name } => {
                Credentials::load(&file)?.write_client_cert(&dir, &name)?;
                Ok(Output::Done(written("directory", dir)))
            }
        }
    }
}

fn written(key: &'static str, path: PathBuf) -> Record {
    Record::default().field(key, "Written", Cell::text(path.display().to_string()))
}
