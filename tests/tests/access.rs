//! Who may speak to a node, and whom a mount believes: certificates, the pool's token, and what strangers are told.

#![allow(clippy::unwrap_used)]

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Output;
use std::time::Duration;

use avidfs_tests::cluster::{Cluster, own_ip};
use avidfs_tests::mount::Mount;
use avidfs_tests::process::{command, output, run};
use avidfs_tests::scratch::scratch;
use avidfs_tests::{data, eventually, timed};
use common::wire::NodeId;
use credentials::TlsFiles;
use credentials::pki::{Pki, USUAL_DAYS};
use tempfile::TempDir;

fn avidfs(words: &[&str]) -> Output {
    output(command("avidfs").args(words))
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).trim().to_owned()
}

/// Every refusal comes at once, and not by a limit that runs out.
const AT_ONCE: Duration = Duration::from_secs(4);

/// What both programs take.
fn words(files: &TlsFiles) -> Vec<String> {
    let shown = |path: &Path| path.to_str().unwrap().to_owned();
    let given = [("--tls-cert", &files.cert), ("--tls-key", &files.key), ("--tls-ca", &files.ca)];
    given.iter().flat_map(|(option, file)| [(*option).to_owned(), shown(file)]).collect()
}

fn strs(words: &[String]) -> Vec<&str> {
    words.iter().map(String::as_str).collect()
}

/// A CA, and nodes with a certificate that `make` has it make.
fn closed(count: usize, make: impl Fn(&Pki) -> TlsFiles) -> (TempDir, Pki, Cluster) {
    let folder = scratch();
    let pki = Pki::init(folder.path(), USUAL_DAYS).unwrap();
    let options = words(&make(&pki));
    let cluster = Cluster::with(count, &strs(&options));
    (folder, pki, cluster)
}

fn for_own_address(pki: &Pki) -> TlsFiles {
    pki.node(&[&own_ip().to_string()], None).unwrap()
}

/// What `avidfs status --peers` has to say of a node that cannot be spoken to; and it says so at once.
fn refusal_by(peer: &str, options: &[String]) -> String {
    let mut asking = command("avidfs");
    asking.args(["status", "--peers", peer]).args(options);
    let (answer, took) = timed(|| output(&mut asking));
    assert_eq!(answer.status.code(), Some(1), "{}", said(&answer));
    assert!(took < AT_ONCE, "{took:?}");
    let told = String::from_utf8(answer.stdout).unwrap();
    assert!(told.contains(peer), "{told}");
    told
}

#[test]
fn files_are_written_and_read_over_tls() {
    let (_folder, pki, cluster) = closed(5, for_own_address);
    let options = words(&pki.client("client").unwrap());
    let mount = Mount::on(Some(cluster.peers_by("https")), &strs(&options));
    data::put(&mount.path("large"), 1, 9 << 20);
    data::put(&mount.path("small"), 2, 100);
    mount.unmount();
    mount.mount();
    cluster.kill(0);
    cluster.kill(3);
    data::compare(&mount.path("large"), 1, 9 << 20).unwrap();
    data::compare(&mount.path("small"), 2, 100).unwrap();
}

#[test]
fn who_has_no_certificate_of_the_ca_is_told_what_is_missing() {
    let (folder, pki, cluster) = closed(1, for_own_address);
    let stranger = Pki::init(&folder.path().join("other"), USUAL_DAYS).unwrap().client("mallory").unwrap();
    let mine = pki.client("client").unwrap();
    let half = TlsFiles { ca: mine.ca.clone(), ..stranger.clone() };
    let [https, http] = ["https", "http"].map(|scheme| cluster.peers_by(scheme));
    let cases = [
        (&http, vec![], "it speaks TLS alone: name it by https://"),
        (&https, vec![], "give --tls-cert, --tls-key and --tls-ca to speak https"),
        (&http, words(&mine), "with --tls-ca only https is spoken"),
        (&https, words(&stranger), "its certificate is of another CA than --tls-ca"),
        (&https, words(&half), "it believes another CA than the one of --tls-cert"),
        (&https, words(&for_name(&pki, "node-two")), "does not take the certificate of --tls-cert"),
    ];
    for (peer, options, sentence) in cases {
        let told = refusal_by(peer, &options);
        assert!(told.contains(sentence), "{told}");
    }
    run(command("avidfs").args(["status", "--peers", &https]).args(words(&mine)));
}

fn for_name(pki: &Pki, name: &str) -> TlsFiles {
    pki.node(&[name], None).unwrap()
}

#[test]
fn a_node_that_cannot_prove_who_it_is_is_not_believed() {
    let plain = Cluster::start(1);
    let (_folder, pki, elsewhere) = closed(1, |pki| for_name(pki, "elsewhere.example"));
    let client = words(&pki.client("client").unwrap());
    let told = refusal_by(&plain.peers_by("https"), &client);
    assert!(told.contains("it does not speak TLS"), "{told}");
    let told = refusal_by(&elsewhere.peers_by("https"), &client);
    assert!(told.contains("its certificate is for") && told.contains("elsewhere.example"), "{told}");
}

#[test]
fn an_expired_certificate_is_named_by_whoever_sees_it() {
    let expired = |folder: &Path| Pki::open(folder, 0).unwrap();
    let (folder, pki, good) = closed(1, for_own_address);
    let late_client = words(&expired(folder.path()).client("late").unwrap());
    let late_node = expired(folder.path()).node(&["late-node", &own_ip().to_string()], None).unwrap();
    let late = Cluster::with(1, &strs(&words(&late_node)));
    let client = words(&pki.client("client").unwrap());
    let cases = [
        (&good, late_client, "it says that the certificate of --tls-cert has expired"),
        (&late, client, "its certificate has expired"),
    ];
    for (cluster, options, sentence) in cases {
        // It is valid up to the end of the second in which it was made.
        eventually(AT_ONCE, sentence, || {
            let mut asking = command("avidfs");
            let answer =
                output(asking.args(["status", "--peers", &cluster.peers_by("https")]).args(&options));
            String::from_utf8(answer.stdout).unwrap().contains(sentence)
        });
    }
}

#[test]
fn a_node_does_not_start_with_the_certificate_of_another_one() {
    let folder = scratch();
    let pki = Pki::init(folder.path(), USUAL_DAYS).unwrap();
    let bound = pki.node(&["127.0.0.1"], Some(NodeId([7; 16]))).unwrap();
    let mut starting = command("shardd");
    starting.args(["--listen", "127.0.0.1:0", "--data"]).arg(folder.path().join("data")).args(words(&bound));
    let refused = output(&mut starting);
    assert_eq!(refused.status.code(), Some(1));
    assert!(said(&refused).contains(&format!("is bound to node {}", "07".repeat(16))), "{}", said(&refused));
    let starting = output(command("shardd").args(["--data", "/nonexistent", "--tls-ca", "ca.pem"]));
    assert!(said(&starting).ends_with("belong together: --tls-cert is missing"), "{}", said(&starting));
}

#[test]
fn one_command_makes_a_ca_and_overwrites_nothing() {
    let folder = scratch();
    let ca = folder.path().join("pki");
    let shown = ca.to_str().unwrap();
    run(command("avidfs").args(["pki", "init", shown, "--host", "node,127.0.0.1"]));
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
