//! What every command gets: the global options, the connection, the ways to ask and to answer.

use crate::failure::{Failure, code};
use crate::output::{Format, Output};
use clap::Args;
use sheepdog_client::pb::VdiRef;
use sheepdog_client::{Client, ConnectOptions, Credentials, Role};
use std::io::{BufRead, IsTerminal, Write};
use std::path::PathBuf;
use tokio::sync::OnceCell;

/// Options that every command takes.
#[derive(Args, Debug, Clone)]
pub struct Global {
    /// Sheep to talk to, any of the cluster's: HOST or HOST:PORT, several separated by commas
    #[arg(
        short,
        long,
        global = true,
        env = "DOG_ADDR",
        default_value = "127.0.0.1",
        value_name = "ADDR",
        help_heading = "Global options"
    )]
    pub address: String,
    /// Its client port
    #[arg(
        short,
        long,
        global = true,
        env = "DOG_PORT",
        default_value_t = 7000,
        help_heading = "Global options"
    )]
    pub port: u16,
    /// The cluster's credentials, as `dog secret new` wrote them
    #[arg(
        long,
        global = true,
        env = "DOG_SECRET_FILE",
        value_name = "FILE",
        help_heading = "Global options"
    )]
    pub secret_file: Option<PathBuf>,
    /// How to print the answer
    #[arg(
        short,
        long,
        global = true,
        env = "DOG_OUTPUT",
        value_enum,
        default_value_t,
        value_name = "FORMAT",
        help_heading = "Global options"
    )]
    pub output: Format,
    /// Say more
    #[arg(short, long, global = true, help_heading = "Global options")]
    pub verbose: bool,
}

/// Confirmation of destructive commands.
#[derive(Args, Debug, Clone)]
pub struct Confirm {
    /// Do not ask
    #[arg(short, long)]
    pub yes: bool,
}

impl Confirm {
    /// Ask, unless told not to. `what` ends the sentence "This ...".
    pub fn ask(&self, what: &str) -> Result<(), Failure> {
        if self.yes {
            return Ok(());
        }
        eprint!("This {what}\nType yes to go on: ");
        let mut answer = String::new();
        let read = std::io::stdin().lock().read_line(&mut answer);
        if !std::io::stdin().is_terminal() {
            eprintln!();
        }
        match read {
            Ok(_) if answer.trim() == "yes" => Ok(()),
            _ => Err(Failure::new(code::FAILED, "not confirmed, nothing was done")
                .hint("answer yes, or add --yes")),
        }
    }
}

/// See the module.
pub struct Context {
    /// Global options.
    pub global: Global,
    client: OnceCell<Client>,
}

impl Context {
    /// Nothing is connected yet.
    pub fn new(global: Global) -> Self {
        Self { global, client: OnceCell::new() }
    }

    /// The connection, made when it is first needed.
    pub async fn client(&self) -> Result<&Client, Failure> {
        self.client.get_or_try_init(|| async { Ok(Client::connect(self.options()?).await?) }).await
    }

    fn options(&self) -> Result<ConnectOptions, Failure> {
        let addrs = self.global.address.split(',').map(str::trim).filter(|a| !a.is_empty());
        let addrs: Vec<String> = addrs.map(|a| with_port(a, self.global.port)).collect();
        if addrs.is_empty() {
            return Err(Failure::usage("--address is empty: name a sheep"));
        }
        let options = ConnectOptions::new(addrs);
        // Inside a sheep's container its own variable says where the secret is.
        let file =
            self.global.secret_file.clone().or_else(|| std::env::var_os("SHEEP_SECRET_FILE").map(Into::into));
        match file.filter(|f| !f.as_os_str().is_empty()) {
            None => Ok(options),
            Some(file) => Ok(options.credentials(&Credentials::load(&file)?, &Role::Dog)?),
        }
    }

    /// Print the answer.
    pub fn print(&self, output: &Output) -> Result<(), Failure> {
        self.write(&output.render(self.global.output, self.global.verbose))
    }

    /// Print one of several answers.
    pub fn print_next(&self, output: &Output) -> Result<(), Failure> {
        self.write(&output.render_next(self.global.output))
    }

    fn write(&self, text: &str) -> Result<(), Failure> {
        let mut out = std::io::stdout().lock();
        let written = out.write_all(text.as_bytes()).and_then(|()| out.flush());
        match written {
            // Whoever read us has had enough.
            Err(e) if e.kind() == std::io::ErrorKind::BrokenPipe => std::process::exit(0),
            Err(e) => Err(Failure::io("standard output", &e)),
            Ok(()) => Ok(()),
        }
    }

    /// A remark for people, on standard error, with `-v`.
    pub fn remark(&self, text: &str) {
        if self.global.verbose {
            eprintln!("{text}");
        }
    }
}

fn with_port(addr: &str, port: u16) -> String {
    let has_port = match addr.rsplit_once(':') {
        Some((host, p)) => {
            !p.is_empty()
                && p.bytes().all(|b| b.is_ascii_digit())
                && (!host.contains(':') || host.ends_with(']'))
        }
        None => false,
    };
    match (has_port, addr.contains(':') && !addr.starts_with('[')) {
        (true, _) => addr.to_owned(),
        (false, true) => format!("[{addr}]:{port}"),
        (false, false) => format!("{addr}:{port}"),
    }
}

/// `NAME` or `NAME@TAG`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// VDI.
    pub name: String,
    /// Tag or number of a snapshot, or empty.
    pub snapshot: String,
}

impl Image {
    /// For clap.
    pub fn parse(text: &str) -> Result<Self, String> {
        let (name, snapshot) = text.split_once('@').unwrap_or((text, ""));
        if name.is_empty() || (text.contains('@') && snapshot.is_empty()) {
            return Err("write NAME or NAME@TAG".into());
        }
        Ok(Self { name: name.into(), snapshot: snapshot.into() })
    }
    /// The VDI.
    pub fn vdi(&self) -> Option<VdiRef> {
        Some(VdiRef::name(&self.name))
    }
    /// The snapshot, which may be given by an option too.
    pub fn with_option(&self, option: &Option<String>) -> Result<String, Failure> {
        match (self.snapshot.is_empty(), option) {
            (_, None) => Ok(self.snapshot.clone()),
            (true, Some(s)) => Ok(s.clone()),
            (false, Some(_)) => {
                Err(Failure::usage("the snapshot is named twice: with @ and with --snapshot"))
            }
        }
    }
}

/// The VDI of this name.
pub fn vdi(name: &str) -> Option<VdiRef> {
    Some(VdiRef::name(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_get_the_port_they_lack() {
        for (addr, want) in [
            ("host", "host:7000"),
            ("host:7010", "host:7010"),
            ("10.0.0.1", "10.0.0.1:7000"),
            ("::1", "[::1]:7000"),
            ("[::1]", "[::1]:7000"),
            ("[::1]:7010", "[::1]:7010"),
        ] {
            assert_eq!(with_port(addr, 7000), want);
        }
    }

    #[test]
    fn images() {
        let image = |n: &str, s: &str| Image { name: n.into(), snapshot: s.into() };
        assert_eq!(Image::parse("a"), Ok(image("a", "")));
        assert_eq!(Image::parse("a@b"), Ok(image("a", "b")));
        assert!(Image::parse("@b").is_err() && Image::parse("a@").is_err() && Image::parse("").is_err());
    }
}
