//! Suites that others wrote for file systems in general, on a mount: pjdfstest and fsx. Both are of the versions that
//! scripts/lib.sh names, so that their figures can be exact.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::fs;
use std::process::Command;

use avidfs_tests::mount::Mount;
use avidfs_tests::process::{need_root, output, run, tool};
use avidfs_tests::scratch::scratch;
use avidfs_tests::seed::{announce, is_given, rounds, seed};

/// How many cases pjdfstest 0.2.2 has on Linux.
const CASES: usize = 398;

/// What is left out, and why. All but the last are left out on ext4 as well.
const LEFT_OUT: &[(&str, usize, &str)] = &[
    (
        "Remounts (allow_remount) are not allowed in the configuration file",
        13,
        "they remount what others use",
    ),
    (
        "Cannot get value for LINK_MAX: filesystem limit is unknown",
        1,
        "pathconf(3) knows it of no FUSE mount",
    ),
];

#[test]
fn pjdfstest_finds_nothing() {
    need_root("pjdfstest acts as several users");
    let (mount, folder) = (Mount::embedded(&[]), scratch());
    let group = |user: &str| run(Command::new("id").args(["-gn", user])).trim().to_owned();
    let entries = ["nobody", "daemon"].map(|user| format!("[\"{user}\", \"{}\"]", group(user))).join(", ");
    let config = folder.path().join("pjdfstest.toml");
    let text = format!(
        "[features]\nposix_fallocate = {{}}\nrename_ctime = {{}}\nutimensat = {{}}\nutime_now = {{}}\n\
         [settings]\nnaptime = 0.01\nallow_remount = false\n[dummy_auth]\nentries = [{entries}]\n"
    );
    fs::write(&config, text).unwrap();
    let ended = output(
        Command::new(tool("pjdfstest"))
            .env("NO_COLOR", "1")
            .arg("-c")
            .arg(&config)
            .arg("-p")
            .arg(mount.root())
            .args(["-s", "/dev/shm"]),
    );
    let told = String::from_utf8(ended.stdout).unwrap();
    let skipped: usize = LEFT_OUT.iter().map(|(_, count, _)| count).sum();
    let summary = format!(
        "Summary: 0 failed, {skipped} skipped, {} passed, 0 expected failures, {CASES} total",
        CASES - skipped
    );
    assert!(told.contains(&summary), "not {summary}:\n{}", of_interest(&told));
    let reasons = told.lines().filter_map(|line| line.strip_prefix('\t'));
    let found = reasons.fold(BTreeMap::new(), |mut found, reason| {
        *found.entry(reason).or_insert(0) += 1;
        found
    });
    let wanted: BTreeMap<&str, usize> = LEFT_OUT.iter().map(|(reason, count, _)| (*reason, *count)).collect();
    assert_eq!(found, wanted);
    assert!(ended.status.success());
    mount.unmount();
}

/// The lines of a report that are not about cases that went well.
fn of_interest(report: &str) -> String {
    report.lines().filter(|line| !line.ends_with(" ok")).collect::<Vec<_>>().join("\n")
}

/// What fsx does how often; more of what changes sizes and extents than it does by itself.
const WEIGHTS: &str = "
flen = 1048576
[weights]
close_open = 1
invalidate = 1
read = 10
write = 10
mapread = 10
mapwrite = 10
truncate = 5
fsync = 0.5
fdatasync = 0.5
posix_fallocate = 3
punch_hole = 5
sendfile = 3
posix_fadvise = 1
copy_file_range = 5
";

#[test]
fn fsx_finds_nothing() {
    let folder = scratch();
    let config = folder.path().join("fsx.toml");
    fs::write(&config, WEIGHTS).unwrap();
    // Objects smaller than the file, so that it has many.
    let mount = Mount::embedded(&["--object-size", "64KiB", "--cache-memory", "1MiB"]);
    let seeds = if is_given() { 1 } else { rounds(3, 20) };
    let first = seed();
    for seed in first..first + seeds {
        announce(seed);
        let file = mount.path(format!("{seed}"));
        let mut fsx = Command::new(tool("fsx"));
        fsx.args(["-q", "-N", "5000", "-S"]).arg(seed.to_string()).arg("-f").arg(&config);
        let told = run(fsx.arg("-P").arg(folder.path()).arg(&file));
        assert!(told.contains("All operations completed A-OK!"), "{told}");
        mount.remount();
        fs::remove_file(&file).unwrap();
    }
}
