//! What dog says without a cluster: usage errors, help, credentials, explanations.

#![allow(clippy::unwrap_used)]

mod harness;

use harness::{dog_with, free_port};
use std::os::unix::fs::PermissionsExt;

#[test]
fn nonsense_is_a_usage_error() {
    let table: &[&[&str]] = &[
        &[],
        &["frobnicate"],
        &["vdi"],
        &["vdi", "create"],
        &["vdi", "create", "x"],
        &["vdi", "create", "x", "big"],
        &["vdi", "create", "x", "0"],
        &["vdi", "create", "x", "-5G"],
        &["vdi", "create", "x", "1G", "--copies", "0"],
        &["vdi", "create", "x", "1G", "--copies", "17"],
        &["vdi", "create", "x", "1G", "--copies", "2", "--copy-policy", "2:1"],
        &["vdi", "create", "x", "1G", "--copy-policy", "21"],
        &["vdi", "create", "x", "1G", "--object-size", "8G"],
        &["vdi", "snapshot", "x", "-s", ""],
        &["vdi", "rollback", "x", "--yes"],
        &["vdi", "delete", "x@a", "-s", "b", "--yes"],
        &["vdi", "delete", "@a"],
        &["vdi", "list", "-o", "xml"],
        &["vdi", "object", "location", "x", "many"],
        &["node", "kill"],
        &["node", "vnodes", "abc"],
        &["node", "vnodes", "abc", "3", "--weight", "3"],
        &["node", "recovery", "throttle", "--concurrency", "65"],
        &["cluster", "rebuild"],
        &["cluster", "recover", "force", "--yes"],
        &["cluster", "alter-copy"],
        &["cluster", "trash", "--keep", "soon"],
        &["trash", "purge"],
        &["trash", "restore"],
        &["trash", "restore", "x", "--as", ""],
        &["vdi", "lock-snapshot", "x", "--until", "1h"],
        &["vdi", "lock-snapshot", "x@a", "--until", "2027-02-30"],
        &["completion", "tcsh"],
        &["-p", "70000", "vdi", "list"],
        &["-p", "x", "vdi", "list"],
        &["-a", ",", "vdi", "list"],
    ];
    let port = free_port().to_string();
    for words in table {
        let said = dog_with(words, &[("DOG_PORT", &port)], b"");
        // Some of these are only seen after a connection: then the missing cluster is told first.
        assert!(said.code == 64, "{words:?}: {said:?}");
        assert!(!said.err.is_empty(), "{words:?} is refused without a word");
        assert!(said.out.is_empty(), "{words:?}: {said:?}");
    }
}

#[test]
fn help_is_not_an_error() {
    for words in [&["--help"][..], &["vdi", "--help"], &["vdi", "create", "-h"], &["--version"]] {
        let said = dog_with(words, &[], b"").ok();
        assert!(!said.out.is_empty() && said.err.is_empty());
    }
}

#[test]
fn nobody_there_is_a_host_problem_that_says_what_to_try() {
    let port = free_port().to_string();
    let said = dog_with(&["-p", &port, "vdi", "list"], &[], b"").fails(2, "cannot reach a sheep");
    assert!(
        said.err.contains("-a HOST") && said.err.contains("--secret-file") && said.err.contains(&port),
        "{said:?}"
    );
    // Before anything is asked.
    dog_with(&["-p", &port, "vdi", "write", "x"], &[], b"data").fails(2, "cannot reach");
    // Several addresses: all of them are named.
    let said = dog_with(&["-a", "127.0.0.1:1,127.0.0.1:2", "node", "list"], &[], b"").fails(2, "127.0.0.1:1");
    assert!(said.err.contains("127.0.0.1:2"), "{said:?}");
}

#[test]
fn not_part_of_this_release() {
    dog_with(&["cluster", "user", "list"], &[], b"").fails(1, "not part of this release");
}

#[test]
fn explain_and_completion() {
    let said = dog_with(&["explain", "4"], &[], b"").ok();
    assert!(said.out.contains("full (exit code 4)") && said.out.contains("dog node md plug"), "{said:?}");
    assert!(dog_with(&["explain", "busy"], &[], b"").ok().out.contains("exit code 1"));
    dog_with(&["explain", "77"], &[], b"").fails(5, "no code 77");
    let list = dog_with(&["explain", "-o", "raw"], &[], b"").ok();
    assert!(list.out.starts_with("0 ok "), "{list:?}");
    for shell in ["bash", "zsh", "fish"] {
        assert!(dog_with(&["completion", shell], &[], b"").ok().out.contains("snapshot-group"), "{shell}");
    }
}

#[test]
fn secrets() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("cluster.secret");
    let file = file.to_str().unwrap();
    let said = dog_with(&["secret", "new", "-f", file], &[], b"").ok();
    assert!(said.out.is_empty() && said.err.is_empty(), "{said:?}");
    assert_eq!(std::fs::metadata(file).unwrap().permissions().mode() & 0o777, 0o600);
    dog_with(&["secret", "new", "-f", file], &[], b"").fails(3, "not overwritten");
    let certs = dir.path().join("vm1");
    dog_with(&["secret", "client-cert", certs.to_str().unwrap(), "-f", file], &[], b"").ok();
    for name in ["ca-cert.pem", "client-cert.pem", "client-key.pem"] {
        assert!(std::fs::read_to_string(certs.join(name)).unwrap().starts_with("-----BEGIN "), "{name}");
    }
    assert_eq!(std::fs::metadata(certs.join("client-key.pem")).unwrap().permissions().mode() & 0o777, 0o600);
    std::fs::set_permissions(file, std::fs::Permissions::from_mode(0o644)).unwrap();
    dog_with(&["--secret-file", file, "vdi", "list"], &[], b"").fails(2, "chmod 600");
    dog_with(&["--secret-file", "/nonexistent", "vdi", "list"], &[], b"").fails(2, "dog secret new");
}
