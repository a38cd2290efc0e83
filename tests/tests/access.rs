//! Who may speak to a node, and whom a mount believes: certificates, the pool's token, and what strangers are told.

#![allow(clippy::unwrap_used)]

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Output;

use avidfs_tests::process::{command, output, run};
use avidfs_tests::scratch::scratch;

fn avidfs(words: &[&str]) -> Output {
    output(command("avidfs").args(words))
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).trim().to_owned()
}

/// A CA in `folder`, with a certificate for nodes at 127.0.0.1 and one for a client.
fn pki(folder: &Path) {
    run(command("avidfs").args(["pki", "init", folder.to_str().unwrap(), "--host", "node,127.0.0.1"]));
}

#[test]
fn one_command_makes_a_ca_and_overwrites_nothing() {
    let folder = scratch();
    let ca = folder.path().join("pki");
    let shown = ca.to_str().unwrap();
    pki(&ca);
    let mut names: Vec<String> = Vec::new();
    for entry in std::fs::read_dir(&ca).unwrap() {
        let entry = entry.unwrap();
        assert_eq!(entry.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        names.push(entry.file_name().into_string().unwrap());
    }
    names.sort();
    assert_eq!(names, ["ca.key", "ca.pem", "client.key", "client.pem", "node.key", "node.pem"]);
    let refused = avidfs(&["pki", "init", shown]);
    assert_eq!(refused.status.code(), Some(1));
    assert_eq!(said(&refused), format!("avidfs: {shown}/ca.key: it exists, and nothing is overwritten"));
    let refused = avidfs(&["pki", "node", shown, "../node"]);
    assert_eq!(said(&refused), "avidfs: \"../node\" is neither the name nor the address of a host");
    assert!(avidfs(&["pki", "client", shown, "alice"]).status.success());
    assert!(
        said(&avidfs(&["pki", "client", "/nonexistent", "bob"])).starts_with("avidfs: /nonexistent/ca.key: ")
    );
}
