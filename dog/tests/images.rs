//! Image files into volumes and back, with the real qemu-img.

#![allow(clippy::unwrap_used)]

mod harness;

use harness::{Sheep, dog_with};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;

const MIB: usize = 1 << 20;
const SIZE: usize = 40 * MIB;

struct Case {
    sheep: Sheep,
    dir: tempfile::TempDir,
}

impl Case {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let home = dir.path().join("sheep");
        std::fs::create_dir(&home).unwrap();
        let sheep = Sheep::formatted(&home, &[], &[]);
        Self { sheep, dir }
    }
    fn path(&self, name: &str) -> String {
        self.dir.path().join(name).to_str().unwrap().to_owned()
    }
    /// dog on a host that has no qemu-img.
    fn without(&self, words: &[&str], input: &[u8]) -> harness::Said {
        dog_with(
            words,
            &[("DOG_PORT", &self.sheep.port.to_string()), ("PATH", self.dir.path().to_str().unwrap())],
            input,
        )
    }
    fn read(&self, image: &str) -> Vec<u8> {
        self.sheep.dog(&["vdi", "read", image]).ok().bytes
    }
    fn names(&self) -> Vec<String> {
        let rows = self.sheep.dog(&["vdi", "list", "--fast", "-o", "json"]).json();
        rows.as_array().unwrap().iter().map(|r| r["name"].as_str().unwrap().to_owned()).collect()
    }
    /// Bytes that are allocated.
    fn allocated(&self, name: &str) -> u64 {
        let rows = self.sheep.dog(&["vdi", "diff", name, "-o", "json"]).json();
        rows.as_array().unwrap().iter().map(|r| r["length"].as_u64().unwrap()).sum()
    }
    /// A raw file of which 3 MiB and a bit are not zeros, and what is in it.
    fn raw(&self, name: &str) -> Vec<u8> {
        let mut bytes = vec![0; SIZE];
        for (n, (at, len)) in
            [(0, MIB), (10 * MIB + 4096, MIB), (SIZE - MIB - 512, MIB + 512)].into_iter().enumerate()
        {
            let noise = (0..len)
                .map(|i| (i as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15 + n as u64).to_be_bytes()[0] | 1);
            bytes.splice(at..at + len, noise);
        }
        let file = std::fs::File::create(self.path(name)).unwrap();
        file.set_len(SIZE as u64).unwrap();
        for (n, part) in bytes.chunks(4096).enumerate().filter(|(_, p)| p.iter().any(|b| *b != 0)) {
            file.write_all_at(part, n as u64 * 4096).unwrap();
        }
        bytes
    }
    fn convert(&self, from: &str, format: &str, to: &str) {
        run("qemu-img", &["convert", "-f", "raw", "-O", format, &self.path(from), &self.path(to)]);
    }
}

fn run(program: &str, words: &[&str]) -> String {
    let output = Command::new(program).args(words).output().unwrap_or_else(|e| panic!("{program}: {e}"));
    assert!(output.status.success(), "{program} {words:?}: {output:?}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn every_format_comes_in_and_goes_out() {
    let case = Case::new();
    let wanted = case.raw("disk.raw");
    for format in ["qcow2", "vmdk", "vdi", "vhdx", "vpc", "qed", "parallels", "qcow"] {
        let file = format!("disk.{format}");
        case.convert("disk.raw", format, &file);
        case.sheep.dog(&["vdi", "import", &case.path(&file), format]).ok();
        let got = case.read(format);
        // Some formats know sizes of their own only.
        assert!(got.len() >= SIZE && got[..SIZE] == wanted, "{format}");
        assert!(got[SIZE..].iter().all(|b| *b == 0), "{format}");
        assert!(case.allocated(format) < 4 * MIB as u64, "{format}: holes stay holes");

        // And back, from a snapshot, while the volume has become another.
        case.sheep.dog(&["vdi", "snapshot", format, "-s", "then"]).ok();
        case.sheep.dog_input(&["vdi", "write", format, "5M"], b"later").ok();
        let out = case.path(&format!("out.{format}"));
        case.sheep.dog(&["vdi", "export", &format!("{format}@then"), &out, "--format", format]).ok();
        let info: serde_json::Value =
            serde_json::from_str(&run("qemu-img", &["info", "--output=json", "-f", format, &out])).unwrap();
        let virtual_size = info["virtual-size"].as_u64().unwrap();
        assert!(virtual_size >= SIZE as u64, "{info}");
        run("qemu-img", &["compare", "-f", format, "-F", "raw", &out, &case.path("disk.raw")]);
        let stored =
            std::fs::metadata(&out).map(|m| std::os::unix::fs::MetadataExt::blocks(&m) * 512).unwrap();
        assert!(stored < 24 * MIB as u64, "{format}: {stored} bytes: holes stay holes");
    }
    assert_eq!(case.names().len(), 16, "a volume and a snapshot each");

    // More room than the image needs.
    case.sheep.dog(&["vdi", "import", &case.path("disk.qcow2"), "large", "--size", "64M"]).ok();
    let large = case.read("large");
    assert!(large.len() == 64 * MIB && large[..SIZE] == wanted && large[SIZE..].iter().all(|b| *b == 0));
    case.sheep
        .dog(&["vdi", "import", &case.path("disk.qcow2"), "small", "--size", "8M"])
        .fails(64, "cannot have");
    // The working image.
    case.sheep.dog(&["vdi", "export", "qcow2", &case.path("now.qcow2"), "--format", "qcow2"]).ok();
    case.sheep.dog(&["vdi", "import", &case.path("now.qcow2"), "again"]).ok();
    assert!(case.read("again") == case.read("qcow2"));
}

#[test]
fn who_has_no_qemu_img_is_told_and_raw_images_need_none() {
    let case = Case::new();
    let wanted = case.raw("disk.raw");
    case.convert("disk.raw", "qcow2", "disk.qcow2");
    let (raw, qcow2) = (case.path("disk.raw"), case.path("disk.qcow2"));
    case.without(&["vdi", "import", &raw, "raw"], b"").ok();
    assert!(case.read("raw") == wanted);
    case.without(&["vdi", "import", &qcow2, "x"], b"")
        .fails(2, "looks like qcow2")
        .fails(2, "install qemu-utils");
    case.without(&["vdi", "export", "raw", &case.path("out"), "--format", "vmdk"], b"")
        .fails(2, "qemu-utils");
    assert!(!Path::new(&case.path("out")).exists());
    case.without(&["vdi", "export", "raw", &case.path("out")], b"").ok();
    assert!(std::fs::read(case.path("out")).unwrap() == wanted);

    // The bytes of the container, for who says so.
    let container = std::fs::read(&qcow2).unwrap();
    case.without(&["vdi", "import", &qcow2, "container", "--format", "raw"], b"").ok();
    assert!(case.read("container")[..container.len()] == container);
    let size = container.len().to_string();
    case.without(&["vdi", "import", "-", "y", "--size", &size], &container).fails(1, "from a pipe");
    case.without(&["vdi", "import", "-", "piped", "--size", &size, "-f", "raw"], &container).ok();
    assert!(case.read("piped")[..container.len()] == container);
    case.without(&["vdi", "import", "-", "z", "--size", "1M", "-f", "qcow2"], b"anything")
        .fails(1, "from a pipe");
    assert_eq!(case.names(), ["container", "piped", "raw"], "nothing half stays");
}

#[test]
fn an_image_that_names_other_files_is_refused() {
    let case = Case::new();
    let wanted = case.raw("secret.raw");
    let secret = case.path("secret.raw");
    let refused = |file: &str, what: &str| {
        case.sheep.dog(&["vdi", "import", &case.path(file), "x"]).fails(1, what).fails(1, "--format raw");
        assert_eq!(case.names(), [] as [&str; 0]);
    };
    run("qemu-img", &["create", "-f", "qcow2", "-b", &secret, "-F", "raw", &case.path("overlay.qcow2")]);
    refused("overlay.qcow2", "a backing file");
    let data = format!("data_file={},data_file_raw=on", case.path("data"));
    run("qemu-img", &["create", "-f", "qcow2", "-o", &data, &case.path("external.qcow2"), "8M"]);
    refused("external.qcow2", "a file with its data");
    let text = format!(
        "# Disk DescriptorFile\nversion=1\nCID=fffffffe\nparentCID=ffffffff\ncreateType=\"monolithicFlat\"\n\nRW {} FLAT \"{secret}\" 0\n",
        SIZE / 512
    );
    std::fs::write(case.path("flat.vmdk"), text).unwrap();
    refused("flat.vmdk", "files with its data");
    run(
        "qemu-img",
        &["create", "-f", "vmdk", "-o", "subformat=twoGbMaxExtentSparse", &case.path("split.vmdk"), "8M"],
    );
    refused("split.vmdk", "files with its data");
    // VMware's way to name a backing file is in the middle of the file: qemu-img tells.
    case.convert("secret.raw", "vmdk", "base.vmdk");
    run(
        "qemu-img",
        &["create", "-f", "vmdk", "-b", &case.path("base.vmdk"), "-F", "vmdk", &case.path("child.vmdk")],
    );
    refused("child.vmdk", "the backing file");

    // A raw disk on which a guest has put such a header is the guest's bytes.
    let overlay = std::fs::read(case.path("overlay.qcow2")).unwrap();
    case.sheep.dog(&["vdi", "import", &case.path("overlay.qcow2"), "guest", "--format", "raw"]).ok();
    assert!(case.read("guest")[..overlay.len()] == overlay);
    for file in ["overlay.qcow2", "flat.vmdk", "child.vmdk"] {
        case.sheep.dog(&["vdi", "import", &case.path(file), file, "--follow"]).ok();
        // Of a single flat extent this qemu-img makes a disk of twice its size.
        assert!(case.read(file)[..SIZE] == wanted, "{file}");
    }
}

#[test]
fn what_fails_leaves_nothing_behind() {
    let case = Case::new();
    let wanted = case.raw("disk.raw");
    case.convert("disk.raw", "qcow2", "disk.qcow2");
    // Its second half is gone: the size is known, the contents are not. qemu-img by itself would make zeros of them.
    for format in ["qcow2", "vmdk", "vdi", "vhdx", "vpc", "qed", "parallels"] {
        let path = case.path(&format!("half.{format}"));
        case.convert("disk.raw", format, &format!("half.{format}"));
        let file = std::fs::File::options().write(true).open(&path).unwrap();
        file.set_len(file.metadata().unwrap().len() / 2).unwrap();
        case.sheep.dog(&["vdi", "import", &path, "half"]).fails(1, "");
    }
    let half = case.path("half.qcow2");
    case.sheep
        .dog(&["vdi", "import", &half, "half"])
        .fails(1, "damaged or cut short")
        .fails(1, "Hint: compare");
    std::fs::write(case.path("stub.qcow2"), b"QFI\xfb").unwrap();
    case.sheep.dog(&["vdi", "import", &case.path("stub.qcow2"), "stub"]).fails(1, "qemu-img");
    case.sheep.dog(&["vdi", "import", &case.path("disk.raw"), "no", "--format", "vhdx"]).fails(1, "qemu-img");
    case.sheep.dog(&["vdi", "import", &case.path("disk.raw"), "no", "--format", "tiff"]).fails(64, "qcow2");
    assert_eq!(case.names(), [] as [&str; 0]);

    case.sheep.dog(&["vdi", "import", &case.path("disk.raw"), "disk"]).ok();
    let out = case.path("out.qcow2");
    std::fs::write(&out, b"mine").unwrap();
    case.sheep.dog(&["vdi", "export", "disk", &out, "--format", "qcow2"]).fails(3, "--force");
    assert_eq!(std::fs::read(&out).unwrap(), b"mine");
    case.sheep.dog(&["vdi", "export", "disk", &out, "--format", "qcow2", "--force"]).ok();
    case.sheep.dog(&["vdi", "import", &out, "back"]).ok();
    assert!(case.read("back") == wanted);
    case.sheep.dog(&["vdi", "export", "nosuch", &case.path("o"), "--format", "qcow2"]).fails(5, "nosuch");
    case.sheep
        .dog(&["vdi", "export", "disk@nosuch", &case.path("o"), "--format", "qcow2"])
        .fails(5, "nosuch");
    assert!(!Path::new(&case.path("o")).exists());
}
