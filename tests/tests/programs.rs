//! Real programs on a mount. What everyday.rs asks of git and tar is not asked again here.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::Path;
use std::process::Command;

use avidfs_tests::data;
use avidfs_tests::mount::Mount;
use avidfs_tests::process::{need_program, need_root, run, shell};
use avidfs_tests::scratch::scratch;
use avidfs_tests::seed::is_soak;

/// Whether a test that only the long form has is to run.
fn only_in_the_long_form() -> bool {
    if !is_soak() {
        eprintln!("only with AVIDFS_SOAK=1");
    }
    is_soak()
}

/// Four processes insert and one reads, on one database.
fn many_on_one_database(journal: &str) {
    need_program("sqlite3");
    let mount = Mount::embedded(&[]);
    let base = mount.path("base.db").display().to_string();
    let sql = |text: &str| run(Command::new("sqlite3").arg(&base).arg(text));
    assert_eq!(sql(&format!("pragma journal_mode={journal};")).trim(), journal);
    sql("create table t(who integer, i integer, filling text, primary key (who, i));");
    let each = 40;
    let writer = |who: usize| {
        format!(
            "for i in $(seq {each}); do sqlite3 -cmd '.timeout 60000' {base} \
             \"insert into t values ({who}, $i, hex(randomblob(500)))\"; done"
        )
    };
    let reader = format!(
        "for i in $(seq 30); do sqlite3 -cmd '.timeout 60000' {base} 'pragma quick_check' | grep -qx ok; done"
    );
    std::thread::scope(|scope| {
        for line in (0..4).map(writer).chain([reader]) {
            scope.spawn(move || shell(&line));
        }
    });
    let wanted = format!("ok\n{}\n", 4 * each);
    assert_eq!(sql("pragma integrity_check; select count(*) from t;"), wanted);
    mount.remount();
    assert_eq!(sql("pragma integrity_check; select count(*) from t;"), wanted);
}

#[test]
fn processes_share_an_sqlite_database_with_a_rollback_journal() {
    many_on_one_database("delete");
}

#[test]
fn processes_share_an_sqlite_database_with_a_write_ahead_log() {
    many_on_one_database("wal");
}

/// Files, links, folders, modes and times for programs that copy trees.
fn tree(at: &Path) {
    for i in 0..60u64 {
        let folder = at.join(format!("d{}/e{}", i % 3, i % 5));
        fs::create_dir_all(&folder).unwrap();
        data::put(&folder.join(format!("f{i}")), i, i * i * 100);
    }
    let at = at.display();
    shell(&format!(
        "cd {at} && ln d0/e0/f0 hard && ln -s d0/e0/f0 soft && mkfifo pipe && mkdir empty && chmod 4751 d0/e0/f0 && \
         truncate -s 10M sparse && setfattr -n user.kind -v x hard && touch -d '1999-12-31 23:59:59.123' d1"
    ));
}

#[test]
fn a_second_rsync_transfers_nothing() {
    need_program("rsync");
    let (mount, source) = (Mount::embedded(&[]), scratch());
    tree(source.path());
    let (from, to) = (source.path().display().to_string(), mount.path("copy").display().to_string());
    let rsync = |options: &str, from: &str, to: &str| {
        shell(&format!("rsync -aHAXS --itemize-changes {options} {from}/ {to}/"))
    };
    assert!(rsync("", &from, &to).lines().count() > 60);
    assert_eq!(rsync("", &from, &to), "");
    assert_eq!(rsync("--checksum", &from, &to), "");
    mount.remount();
    assert_eq!(rsync("--checksum --delete", &from, &to), "");
    let back = scratch();
    let back = back.path().display().to_string();
    rsync("", &to, &back);
    assert_eq!(rsync("--checksum --delete", &from, &back), "");
}

#[test]
fn tar_packs_and_unpacks_all_that_a_tree_has() {
    need_program("tar");
    let mount = Mount::embedded(&[]);
    fs::create_dir(mount.path("tree")).unwrap();
    tree(&mount.path("tree"));
    let root = mount.root().display().to_string();
    shell(&format!("cd {root} && tar --xattrs --acls -Scf tree.tar tree && mkdir out"));
    shell(&format!("cd {root} && tar --xattrs --acls -xpf tree.tar -C out && tar --compare -f tree.tar"));
    let list = |folder: &str| {
        shell(&format!(
            "cd {root}/{folder} && find . -printf '%P %y %m %U %G %s %n %T@ %l\\n' | grep -v '^ d' | sort"
        ))
    };
    assert_eq!(list("out/tree"), list("tree"));
}

#[test]
fn a_python_environment_is_made_and_used() {
    need_program("python3");
    let mount = Mount::embedded(&[]);
    let at = mount.path("venv").display().to_string();
    shell(&format!("python3 -m venv {at} && {at}/bin/pip --version"));
    let inside = shell(&format!("{at}/bin/python -c 'import sys, pip; print(sys.prefix)'"));
    assert_eq!(inside.trim(), at);
    mount.remount();
    let compiled =
        shell(&format!("{at}/bin/python -m compileall -qf {at}/lib && {at}/bin/python -m pip list"));
    assert!(compiled.contains("pip"));
}

/// Those of the class file system that ask for nothing a FUSE mount cannot have (fiemap, verity, inode flags).
const STRESSORS: &[&str] = &[
    "access",
    "chdir",
    "chmod",
    "chown",
    "copy-file",
    "dentry",
    "dir",
    "dirdeep",
    "fallocate",
    "filename",
    "flock",
    "fstat",
    "getdent",
    "hdd",
    "iomix",
    "link",
    "lease",
    "locka",
    "lockf",
    "lockofd",
    "mknod",
    "mmap",
    "open",
    "rename",
    "seek",
    "symlink",
    "sync-file",
    "touch",
    "utime",
    "xattr",
    "inotify",
    "msync",
    "sendfile",
    "readahead",
    "revio",
    "aio",
    "handle",
    "mmapmany",
];

#[test]
fn stress_ng_verifies_what_it_writes() {
    if !only_in_the_long_form() {
        return;
    }
    need_program("stress-ng");
    let mount = Mount::embedded(&[]);
    for stressor in STRESSORS {
        eprintln!("{stressor}");
        run(Command::new("stress-ng")
            .args(["--temp-path".as_ref(), mount.root().as_os_str()])
            .args([&format!("--{stressor}"), "2", "--timeout", "4s", "--verify", "--no-rand-seed"])
            .args([
                "--hdd-bytes",
                "64m",
                "--iomix-bytes",
                "64m",
                "--seek-size",
                "16m",
                "--copy-file-bytes",
                "128m",
            ])
            .args(["--fallocate-bytes", "64m", "--mmap-bytes", "32m", "--mmap-file"]));
    }
    mount.unmount();
}

#[test]
fn postgresql_keeps_a_database_on_the_mount() {
    if !only_in_the_long_form() {
        return;
    }
    need_root("the server runs as the user postgres");
    let folder =
        fs::read_dir("/usr/lib/postgresql").expect("postgresql is installed").next().unwrap().unwrap();
    let bin = folder.path().join("bin").display().to_string();
    let mount = Mount::embedded(&[]);
    shell(&format!("chmod 755 {}", mount.root().parent().unwrap().display()));
    let at = mount.path("cluster").display().to_string();
    shell(&format!("mkdir {at} && chown postgres {at}"));
    let as_postgres =
        |line: &str| shell(&format!("cd / && runuser -u postgres -- bash -euo pipefail -c '{line}'"));
    as_postgres(&format!("{bin}/initdb -D {at} --data-checksums"));
    // By a socket in the cluster's own folder: no port is taken.
    let options = format!("-c listen_addresses= -c unix_socket_directories={at}");
    let server = format!("-D {at} -w -l {at}/log -o \"{options}\"");
    let program = |name: &str| format!("{bin}/{name} -h {at} postgres");
    as_postgres(&format!("{bin}/pg_ctl start {server}"));
    as_postgres(&format!("{} -q -i -s 5", program("pgbench")));
    let told = as_postgres(&format!("{} -c 4 -j 2 -T 30", program("pgbench")));
    assert!(told.contains("number of failed transactions: 0"), "{told}");
    let sum = "select sum(abalance) = (select sum(tbalance) from pgbench_tellers) from pgbench_accounts";
    let psql = |text: &str| as_postgres(&format!("{} -Atc \"{text}\"", program("psql")));
    assert_eq!(psql(sum).trim(), "t");
    as_postgres(&format!("{bin}/pg_ctl stop {server} -m fast"));
    as_postgres(&format!("{bin}/pg_checksums --check -D {at}"));
    mount.remount();
    as_postgres(&format!("{bin}/pg_ctl start {server}"));
    assert_eq!(psql(sum).trim(), "t");
    as_postgres(&format!("{bin}/pg_ctl stop {server} -m immediate"));
}

#[test]
fn cargo_builds_on_the_mount() {
    if !only_in_the_long_form() {
        return;
    }
    let mount = Mount::embedded(&[]);
    let at = mount.path("project").display().to_string();
    shell(&format!(
        "cargo new --quiet --vcs none {at} && cd {at} && cargo build --target-dir built && ./built/debug/project"
    ));
    // The project's own lowest crate, with what it depends on.
    let project = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().display().to_string();
    shell(&format!(
        "cd {project} && cargo test --locked -p avidfs-common --lib --target-dir {}",
        mount.path("target").display()
    ));
}
