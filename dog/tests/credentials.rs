//! With credentials: nobody gets in without the right ones, and the messages say which.

#![allow(clippy::unwrap_used)]

mod harness;

use harness::{Sheep, dog_with, free_port, until};

#[test]
fn only_the_clusters_own_secret_opens_the_port() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let (secret, other, home) = (path("secret"), path("other"), path("sheep"));
    dog_with(&["secret", "new", "-f", &secret], &[], b"").ok();
    dog_with(&["secret", "new", "-f", &other], &[], b"").ok();
    let sheep = Sheep::start(home.as_ref(), free_port(), &["-b", "127.0.0.1", "--secret-file", &secret]);
    until(|| sheep.dog(&["--secret-file", &secret, "cluster", "info"]), |s| s.code == 0);
    sheep.dog(&["--secret-file", &secret, "cluster", "format", "--copies", "1"]).ok();
    sheep.dog(&["--secret-file", &secret, "vdi", "create", "d", "1G"]).ok();

    sheep.dog(&["vdi", "list"]).fails(2, "cannot reach a sheep");
    sheep.dog(&["--secret-file", &other, "vdi", "list"]).fails(2, "another cluster");
    let port = sheep.port.to_string();
    dog_with(&["vdi", "list"], &[("DOG_PORT", &port), ("DOG_SECRET_FILE", &secret)], b"").ok();
    // Inside a sheep's container no option is needed.
    dog_with(&["vdi", "list"], &[("DOG_PORT", &port), ("SHEEP_SECRET_FILE", &secret)], b"").ok();

    let plain = Sheep::start(path("plain").as_ref(), free_port(), &[]);
    until(|| plain.dog(&["cluster", "info"]), |s| s.code == 0);
    plain.dog(&["--secret-file", &secret, "vdi", "list"]).fails(2, "without credentials");
}
