//! Container images made of files of this machine: one layer, an OCI archive that containerd imports. No registry, no base image.

use crate::harness::proc::{output, run};
use anyhow::{Context as _, Result, bail, ensure};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

/// What is at a path of the image.
#[derive(Debug, Clone)]
enum Entry {
    File(PathBuf),
    Text(String),
    Link(String),
    Directory(u32),
}

/// What an image holds and how it starts.
#[derive(Debug, Clone)]
pub struct Image {
    /// As a pod names it, with host and tag.
    pub name: String,
    entries: BTreeMap<String, Entry>,
    entrypoint: Vec<String>,
    user: String,
}

/// Debian's layout: the old directories are links.
const MERGED: [&str; 4] = ["bin", "sbin", "lib", "lib64"];

impl Image {
    /// With the few files that every program expects.
    pub fn new(name: &str) -> Self {
        let mut me =
            Self { name: name.into(), entries: BTreeMap::new(), entrypoint: Vec::new(), user: String::new() };
        for dir in MERGED {
            me.entries.insert(format!("/usr/{dir}"), Entry::Directory(0o755));
            me.entries.insert(format!("/{dir}"), Entry::Link(format!("usr/{dir}")));
        }
        for dir in ["/dev", "/etc", "/proc", "/root", "/run", "/sys", "/var/lib", "/var/log"] {
            me.entries.insert(dir.into(), Entry::Directory(0o755));
        }
        me.entries.insert("/tmp".into(), Entry::Directory(0o1777));
        me.entries.insert("/var/run".into(), Entry::Link("../run".into()));
        me.text("/etc/passwd", "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n")
            .text("/etc/group", "root:x:0:\nnogroup:x:65534:\n")
            .text("/etc/nsswitch.conf", "passwd: files\ngroup: files\nhosts: files dns\n")
    }

    /// A program of this machine, by its path or as the shell finds it, at its own place or another, with the libraries that it loads.
    pub fn program(mut self, program: &str, at: Option<&str>) -> Result<Self> {
        let path = if program.contains('/') { PathBuf::from(program) } else { find(program)? };
        let file = path.canonicalize().with_context(|| format!("{}", path.display()))?;
        for library in libraries(&file)? {
            let place = merged(&library);
            self.entries.insert(place, Entry::File(library.into()));
        }
        let place = merged(at.unwrap_or(path.to_str().context("path")?));
        self.entries.insert(place, Entry::File(file));
        Ok(self)
    }

    /// A small file.
    pub fn text(mut self, at: &str, text: &str) -> Self {
        self.entries.insert(merged(at), Entry::Text(text.into()));
        self
    }

    /// A symbolic link.
    pub fn link(mut self, at: &str, to: &str) -> Self {
        self.entries.insert(merged(at), Entry::Link(to.into()));
        self
    }

    /// What runs when a pod names no command.
    pub fn entrypoint(mut self, words: &[&str]) -> Self {
        self.entrypoint = words.iter().map(|w| (*w).to_owned()).collect();
        self
    }

    /// The archive in a directory. One that is there already is taken as it is: give each image's version its own directory or name.
    pub fn archive(&self, dir: &Path) -> Result<PathBuf> {
        let path = dir.join(format!("{}.tar", self.name.replace(['/', ':'], "_")));
        if path.exists() {
            return Ok(path);
        }
        let work = path.with_extension("new");
        if work.exists() {
            std::fs::remove_dir_all(&work)?;
        }
        let root = work.join("root");
        self.lay_out(&root)?;
        let layout = work.join("layout");
        let blobs = layout.join("blobs/sha256");
        std::fs::create_dir_all(&blobs)?;
        let layer = work.join("layer");
        let plain = ["--sort=name", "--mtime=@0", "--owner=0", "--group=0", "--numeric-owner"];
        tar(&plain, &root, &layer)?;
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            other => other,
        };
        let layer = blob(&blobs, &layer, "application/vnd.oci.image.layer.v1.tar")?;
        let config = json!({
            "architecture": architecture, "os": "linux",
            "config": {"Env": ["PATH=/usr/sbin:/usr/bin:/sbin:/bin"], "Entrypoint": self.entrypoint, "User": self.user,
                       "WorkingDir": "/"},
            "rootfs": {"type": "layers", "diff_ids": [layer["digest"]]},
        });
        let config = json_blob(&blobs, &work, &config, "application/vnd.oci.image.config.v1+json")?;
        let kind = "application/vnd.oci.image.manifest.v1+json";
        let manifest = json!({"schemaVersion": 2, "mediaType": kind, "config": config, "layers": [layer]});
        let mut manifest = json_blob(&blobs, &work, &manifest, kind)?;
        manifest["platform"] = json!({"architecture": architecture, "os": "linux"});
        manifest["annotations"] = json!({"io.containerd.image.name": self.name});
        let index = json!({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json",
                           "manifests": [manifest]});
        std::fs::write(layout.join("index.json"), index.to_string())?;
        std::fs::write(layout.join("oci-layout"), json!({"imageLayoutVersion": "1.0.0"}).to_string())?;
        let done = work.join("archive");
        tar(&plain, &layout, &done)?;
        std::fs::rename(&done, &path)?;
        std::fs::remove_dir_all(&work)?;
        Ok(path)
    }

    fn lay_out(&self, root: &Path) -> Result<()> {
        // In order of their names: a directory comes before what is in it, unless nobody named it.
        for (place, entry) in &self.entries {
            let path = root.join(place.trim_start_matches('/'));
            std::fs::create_dir_all(path.parent().context("parent")?)?;
            let what = || format!("{} in image {}", place, self.name);
            match entry {
                Entry::File(from) => drop(std::fs::copy(from, &path).with_context(what)?),
                Entry::Text(text) => std::fs::write(&path, text).with_context(what)?,
                Entry::Link(to) => std::os::unix::fs::symlink(to, &path).with_context(what)?,
                Entry::Directory(mode) => {
                    std::fs::create_dir_all(&path)?;
                    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(*mode))?;
                }
            }
        }
        Ok(())
    }
}

/// The place in an image whose old directories are links.
fn merged(path: &str) -> String {
    let first = path.trim_start_matches('/').split('/').next().unwrap_or_default();
    if MERGED.contains(&first) { format!("/usr{path}") } else { path.to_owned() }
}

/// As the shell finds it, and where administrators' programs are.
pub fn find(program: &str) -> Result<PathBuf> {
    let path = std::env::var("PATH").unwrap_or_default();
    path.split(':')
        .chain(["/usr/sbin", "/sbin"])
        .map(|dir| Path::new(dir).join(program))
        .find(|p| p.is_file())
        .with_context(|| {
            format!("{program} is not installed: scripts/setup.sh --e2e installs what scenarios need")
        })
}

/// Libraries and the loader, as `ldd` tells them.
fn libraries(program: &Path) -> Result<Vec<String>> {
    let out = output("ldd", &[program.to_str().context("path")?])?;
    // It fails for programs that load nothing.
    parse_ldd(&String::from_utf8_lossy(&out.stdout))
        .with_context(|| format!("libraries of {}", program.display()))
}

fn parse_ldd(text: &str) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for line in text.lines().map(str::trim) {
        if line.ends_with("not found") {
            bail!("{line}");
        }
        let path = line.split_once("=> ").map_or(line, |(_, p)| p).split(" (").next().unwrap_or_default();
        if path.starts_with('/') {
            found.push(path.to_owned());
        }
    }
    Ok(found)
}

fn tar(options: &[&str], dir: &Path, to: &Path) -> Result<()> {
    let (dir, to) = (dir.to_str().context("path")?, to.to_str().context("path")?);
    run("tar", &[options, &["-C", dir, "-cf", to, "."]].concat()).map(drop)
}

/// Move a file to the place of its digest, and describe it.
fn blob(blobs: &Path, file: &Path, kind: &str) -> Result<Value> {
    let said = run("sha256sum", &[file.to_str().context("path")?])?;
    let digest = said.split_whitespace().next().unwrap_or_default();
    ensure!(digest.len() == 64, "sha256sum said {said}");
    let size = std::fs::metadata(file)?.len();
    std::fs::rename(file, blobs.join(digest))?;
    Ok(json!({"mediaType": kind, "digest": format!("sha256:{digest}"), "size": size}))
}

fn json_blob(blobs: &Path, work: &Path, value: &Value, kind: &str) -> Result<Value> {
    let file = work.join("json");
    std::fs::write(&file, value.to_string())?;
    blob(blobs, &file, kind)
}

#[cfg(test)]
mod tests {
    use super::{Image, merged, parse_ldd};
    use crate::harness::proc::run;

    #[test]
    fn an_archive_is_an_image_that_works() {
        let dir = tempfile::tempdir().unwrap();
        let image = Image::new("sheepdog.test/image:1").program("sh", Some("/bin/sh")).unwrap();
        let image = image.text("/etc/motd", "hello").link("/bin/also", "sh").entrypoint(&["/bin/sh"]);
        let archive = image.archive(dir.path()).unwrap();
        let at = |name: &str| dir.path().join(name).display().to_string();
        let out = at("out");
        let unpack = "mkdir -p \"$2\"; tar -C \"$2\" -xf \"$1\"";
        run("sh", &["-ec", unpack, "sh", archive.to_str().unwrap(), &out]).unwrap();
        let read = |digest: &str| {
            let name = format!("{out}/blobs/sha256/{}", digest.trim_start_matches("sha256:"));
            let said = run("sha256sum", &[&name]).unwrap();
            assert_eq!(said.split(' ').next().unwrap(), digest.trim_start_matches("sha256:"));
            name
        };
        let json = |path: &str| -> serde_json::Value {
            serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
        };
        let index = json(&format!("{out}/index.json"));
        assert_eq!(index["manifests"][0]["annotations"]["io.containerd.image.name"], "sheepdog.test/image:1");
        let manifest = json(&read(index["manifests"][0]["digest"].as_str().unwrap()));
        let layer = manifest["layers"][0]["digest"].as_str().unwrap();
        let config = json(&read(manifest["config"]["digest"].as_str().unwrap()));
        assert_eq!(config["rootfs"]["diff_ids"][0], layer);
        assert_eq!(config["config"]["Entrypoint"][0], "/bin/sh");
        let root = at("root");
        run("sh", &["-ec", unpack, "sh", &read(layer), &root]).unwrap();
        // The program runs with nothing but what is in the image.
        if rustix::process::geteuid().is_root() {
            let script = "read word </etc/motd; echo $word";
            assert_eq!(run("chroot", &[&root, "/bin/also", "-c", script]).unwrap(), "hello\n");
        }
        // Made once.
        assert_eq!(image.archive(dir.path()).unwrap(), archive);
    }

    #[test]
    fn libraries_are_those_that_ldd_names() {
        let text = "\tlinux-vdso.so.1 (0x00007ffd)\n\tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f)\n\t/lib64/ld-linux-x86-64.so.2 (0x00007f)\n";
        let want = ["/lib/x86_64-linux-gnu/libc.so.6", "/lib64/ld-linux-x86-64.so.2"];
        assert_eq!(parse_ldd(text).unwrap(), want);
        assert!(parse_ldd("\tstatically linked\n").unwrap().is_empty());
        assert!(parse_ldd("\tlibfoo.so.1 => not found\n").is_err());
    }

    #[test]
    fn old_directories_are_links() {
        assert_eq!(merged("/lib64/ld-linux-x86-64.so.2"), "/usr/lib64/ld-linux-x86-64.so.2");
        assert_eq!(merged("/usr/bin/fio"), "/usr/bin/fio");
        assert_eq!(merged("/library/x"), "/library/x");
    }
}
