//! Who may speak to a node, and whom a mount believes: certificates, the pool's token, and what strangers are told.

#![allow(clippy::unwrap_used)]

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Output, Stdio};
use std::time::Duration;

use avidfs_tests::cluster::{Cluster, own_ip};
use avidfs_tests::mount::Mount;
use avidfs_tests::process::{Process, command, output, run, shell};
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
/// A node has begun to listen, or has not, within this.
const START_LIMIT: Duration = Duration::from_secs(20);

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
    let (folder, pki, cluster) = closed(5, for_own_address);
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
    cluster.restart(0);
    cluster.restart(3);
    mount.unmount();
    run(command("avidfs").args(["fsck", "--state"]).arg(mount.state()).args(&options));
    let (key, anew) = (folder.path().join("volume.key"), folder.path().join("anew"));
    std::fs::write(&key, mount.key()).unwrap();
    let mut recover = command("avidfs");
    recover
        .args(["recover", "--peers", &cluster.peers_by("https"), "--state"])
        .arg(anew)
        .arg("--key")
        .arg(key);
    run(recover.args(&options));
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
        (&https, words(&for_name(&pki, "node-two")), "the certificate is a node's"),
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
    let bound = words(&pki.node(&["127.0.0.1"], Some(NodeId([7; 16]))).unwrap());
    let told = refused_node(folder.path(), &[&["--listen", "127.0.0.1:0"], &strs(&bound)[..]].concat());
    assert!(told.contains(&format!("is bound to node {}", "07".repeat(16))), "{told}");
    let told = refused_node(folder.path(), &["--listen", "127.0.0.1:0", "--tls-ca", "ca.pem"]);
    assert!(told.ends_with("belong together: --tls-cert is missing"), "{told}");
}

/// What a node has to say that is to end at once.
fn refused_node(folder: &Path, options: &[&str]) -> String {
    let log = folder.join("refused.log");
    let mut node = command("shardd");
    node.args(options).arg("--data").arg(folder.join("data")).stderr(File::create(&log).unwrap());
    let status = Process::start(node).wait(START_LIMIT).expect("the node ends");
    assert_eq!(status.code(), Some(1));
    std::fs::read_to_string(log).unwrap().trim().to_owned()
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

/// A file with a token, for its owner alone.
fn token_file(folder: &Path, name: &str, text: &str) -> String {
    let path = folder.join(name);
    std::fs::write(&path, text).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
    path.to_str().unwrap().to_owned()
}

#[test]
fn files_are_written_and_read_with_the_pools_token_which_no_log_shows() {
    let folder = scratch();
    let secret = "correct-horse-battery-staple";
    let token = token_file(folder.path(), "token", secret);
    let cluster = Cluster::with(5, &["--token-file", &token, "--log", "trace"]);
    let mount = Mount::new(&cluster, &["--token-file", &token]);
    data::put(&mount.path("file"), 1, 5 << 20);
    mount.unmount();
    mount.mount();
    data::compare(&mount.path("file"), 1, 5 << 20).unwrap();
    mount.unmount();
    let logs = (0..5).map(|node| cluster.log(node)).chain([mount.log()]);
    logs.for_each(|log| assert!(!log.contains(secret)));
}

#[test]
fn who_does_not_have_the_token_is_told_so_by_the_node() {
    let folder = scratch();
    let token = token_file(folder.path(), "token", "correct-horse-battery-staple");
    let other = token_file(folder.path(), "other", "wrong-horse-battery-staple");
    let cluster = Cluster::with(1, &["--token-file", &token]);
    let sentence =
        "the request does not carry the pool's token: give --token-file with the file this node has";
    for options in [vec![], vec!["--token-file".to_owned(), other]] {
        let told = refusal_by(&cluster.peers(), &options);
        assert!(told.contains(sentence), "{told}");
    }
    run(command("avidfs").args(["status", "--peers", &cluster.peers(), "--token-file", &token]));
    let status_of = |path: &str, header: &str| {
        let url = format!("{}{path}", cluster.peers());
        shell(&format!("curl -s -o /dev/null -w '%{{http_code}}' -H '{header}' {url}"))
    };
    assert_eq!(status_of("/healthz", "x: y"), "200");
    for path in ["/info", "/metrics", "/volumes", "/objects", "/nonsense", "/healthz/x"] {
        assert_eq!(status_of(path, "x: y"), "401", "{path}");
    }
    assert_eq!(status_of("/metrics", "authorization: Bearer correct-horse-battery-staple"), "200");
    std::fs::set_permissions(&token, std::fs::Permissions::from_mode(0o644)).unwrap();
    let refused = avidfs(&["status", "--peers", &cluster.peers(), "--token-file", &token]);
    assert!(
        said(&refused).contains("every user of this machine may read or change it"),
        "{}",
        said(&refused)
    );
}

/// A node that was given another token meanwhile is one that is down, and not one that spoils every write.
#[test]
fn a_mount_goes_on_without_a_node_that_lets_it_in_no_more() {
    let folder = scratch();
    let token = token_file(folder.path(), "token", "correct-horse-battery-staple");
    let theirs = token_file(folder.path(), "theirs", "correct-horse-battery-staple");
    let file_of = |node: usize| if node == 2 { theirs.as_str() } else { token.as_str() };
    let cluster = Cluster::with_each(5, |node| vec!["--token-file", file_of(node)]);
    let mount = Mount::new(&cluster, &["--token-file", &token]);
    data::put(&mount.path("before"), 1, 5 << 20);
    token_file(folder.path(), "theirs", "another-horse-battery-staple");
    cluster.restart(2);
    data::put(&mount.path("after"), 2, 5 << 20);
    data::compare(&mount.path("before"), 1, 5 << 20).unwrap();
    eventually(Duration::from_secs(20), "the log names the node", || {
        let log = mount.log();
        log.contains("node is down") && log.contains("pool's token")
    });
    token_file(folder.path(), "theirs", "correct-horse-battery-staple");
    cluster.restart(2);
    mount.unmount();
}

#[test]
fn a_node_that_nothing_guards_listens_on_loopback_alone() {
    let folder = scratch();
    let data = folder.path().join("data");
    let told = refused_node(folder.path(), &["--listen", "0.0.0.0:0"]);
    let choices = "give --tls-cert, --tls-key and --tls-ca, or --token-file, or say --insecure";
    assert!(told.ends_with(choices), "{told}");
    assert!(!data.exists());
    let token = token_file(folder.path(), "token", "correct-horse-battery-staple");
    let pki = Pki::init(folder.path(), USUAL_DAYS).unwrap();
    let guards = [words(&for_own_address(&pki)), vec!["--token-file".to_owned(), token]];
    for guard in guards.iter().chain([&vec!["--insecure".to_owned()]]) {
        let mut node = command("shardd");
        node.args(["--listen", "0.0.0.0:0", "--data"]).arg(&data).args(guard).stdout(Stdio::piped());
        let mut node = node.spawn().unwrap();
        let mut line = String::new();
        BufReader::new(node.stdout.take().unwrap()).read_line(&mut line).unwrap();
        node.kill().unwrap();
        node.wait().unwrap();
        assert!(line.starts_with("listening on "), "{guard:?}: {line:?}");
    }
}
