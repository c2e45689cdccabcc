//! Servers of a file over NBD: qemu-nbd and nbdkit.

use super::{Lab, System, Target, image, ports};
use crate::plan::Kind;
use crate::proc::Proc;
use anyhow::Result;
use std::process::Command;

/// qemu-nbd; how it treats the file is in the options.
pub fn qemu(lab: &Lab, kind: Kind, options: &[&str]) -> Result<System> {
    let (file, port) = (image(lab, kind)?, ports(1)?);
    let mut cmd = Command::new("qemu-nbd");
    cmd.args(["--persistent", "--shared=8", "--format=raw", "--bind=127.0.0.1"]);
    cmd.arg(format!("--port={port}")).args(options).arg(file);
    serve(lab, kind, cmd, port)
}

/// nbdkit with its file plugin; every write is forced to disk before it is acknowledged.
pub fn nbdkit(lab: &Lab, kind: Kind) -> Result<System> {
    let (file, port) = (image(lab, kind)?, ports(1)?);
    let mut cmd = Command::new("nbdkit");
    cmd.args(["--foreground", "--ipaddr=127.0.0.1", &format!("--port={port}"), "--filter=fua", "file"]);
    cmd.arg(file).arg("fuamode=force");
    serve(lab, kind, cmd, port)
}

fn serve(lab: &Lab, kind: Kind, cmd: Command, port: u16) -> Result<System> {
    let mut system = System::new(kind, Target::Nbd(format!("nbd://127.0.0.1:{port}/")));
    system.servers.push(Proc::start(&kind.name(), cmd, &lab.log(&kind.name()))?);
    system.listening(port)?;
    Ok(system)
}
