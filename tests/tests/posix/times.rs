//! utimensat(2) and the times that other operations set.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;

use avidfs_tests::cases;
use avidfs_tests::files::{open, set_times, set_times_of};
use avidfs_tests::posix::{NOBODY, everywhere, refused, tick};
use libc::{UTIME_NOW, UTIME_OMIT};

#[test]
fn times() {
    everywhere(cases!(
        times_are_kept_to_the_nanosecond,
        now_and_omit_do_what_they_say,
        times_beyond_ext4s_are_cut_to_them,
        who_may_write_sets_now_and_the_owner_sets_any,
        a_link_has_times_of_its_own,
        a_write_moves_mtime_and_ctime,
        a_write_moves_mtime_back_from_the_future,
        a_close_undoes_no_time_that_was_set,
    ));
}

type Stamp = (i64, i64);

fn stamps(path: &Path) -> (Stamp, Stamp) {
    let now = fs::symlink_metadata(path).unwrap();
    ((now.atime(), now.atime_nsec()), (now.mtime(), now.mtime_nsec()))
}

fn times_are_kept_to_the_nanosecond(at: &Path) {
    fs::write(at.join("file"), "").unwrap();
    fs::create_dir(at.join("dir")).unwrap();
    for path in [at.join("file"), at.join("dir")] {
        for times in [((0, 0), (0, 1)), ((-1, 999_999_999), (-2_000_000_000, 5)), ((13 << 30, 1), (1, 2))] {
            set_times(&path, times.0, times.1).unwrap();
            assert_eq!(stamps(&path), times);
        }
    }
}

fn now_and_omit_do_what_they_say(at: &Path) {
    let path = at.join("file");
    fs::write(&path, "").unwrap();
    set_times(&path, (5, 6), (7, 8)).unwrap();
    set_times(&path, (0, UTIME_OMIT), (9, 1)).unwrap();
    assert_eq!(stamps(&path), ((5, 6), (9, 1)));
    let ctime = fs::metadata(&path).unwrap().ctime_nsec();
    tick();
    set_times(&path, (0, UTIME_OMIT), (0, UTIME_OMIT)).unwrap();
    assert_eq!(fs::metadata(&path).unwrap().ctime_nsec(), ctime, "nothing was asked for");
    set_times(&path, (0, UTIME_NOW), (0, UTIME_OMIT)).unwrap();
    let (atime, mtime) = stamps(&path);
    assert!(atime.0 > 1_700_000_000 && mtime == (9, 1));
    refused(libc::EINVAL, set_times(&path, (0, 1_000_000_000), (0, 0)));
}

fn times_beyond_ext4s_are_cut_to_them(at: &Path) {
    fs::write(at.join("file"), "").unwrap();
    set_times(&at.join("file"), (-1 << 40, 5), (1 << 40, 5)).unwrap();
    assert_eq!(stamps(&at.join("file")), ((i32::MIN.into(), 0), (0x3_7fff_ffff, 0)));
}

fn who_may_write_sets_now_and_the_owner_sets_any(at: &Path) {
    let path = at.join("file");
    fs::write(&path, "").unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o666)).unwrap();
    let now = (0, UTIME_NOW);
    NOBODY.does(|| {
        set_times(&path, now, now).unwrap();
        refused(libc::EPERM, set_times(&path, (1, 0), (1, 0)));
        refused(libc::EPERM, set_times(&path, now, (0, UTIME_OMIT)));
    });
    fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
    refused(libc::EACCES, NOBODY.does(|| set_times(&path, now, now)));
    std::os::unix::fs::chown(&path, Some(NOBODY.uid), None).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o000)).unwrap();
    NOBODY.does(|| set_times(&path, (1, 0), (1, 0))).unwrap();
}

fn a_link_has_times_of_its_own(at: &Path) {
    fs::write(at.join("file"), "").unwrap();
    symlink("file", at.join("link")).unwrap();
    set_times(&at.join("file"), (1, 1), (1, 1)).unwrap();
    set_times(&at.join("link"), (2, 2), (2, 2)).unwrap();
    assert_eq!(stamps(&at.join("file")).1, (1, 1));
    assert_eq!(stamps(&at.join("link")).1, (2, 2));
}

fn a_write_moves_mtime_and_ctime(at: &Path) {
    let path = at.join("file");
    fs::write(&path, "").unwrap();
    set_times(&path, (1, 1), (1, 1)).unwrap();
    fs::write(&path, "x").unwrap();
    let after = fs::metadata(&path).unwrap();
    assert!(after.mtime() > 1 && after.ctime() > 1 && after.atime() == 1);
}

fn a_write_moves_mtime_back_from_the_future(at: &Path) {
    let path = at.join("file");
    fs::write(&path, "").unwrap();
    let now = || std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs() as i64;
    for holds_it_open in [false, true] {
        let _held = holds_it_open.then(|| open(&path, libc::O_WRONLY, 0).unwrap());
        set_times(&path, (0, UTIME_OMIT), (now() + 100_000_000, 1)).unwrap();
        let file = open(&path, libc::O_WRONLY | libc::O_APPEND, 0).unwrap();
        std::io::Write::write_all(&mut &file, b"x").unwrap();
        assert!(file.metadata().unwrap().mtime() <= now(), "at once");
        file.sync_all().unwrap();
        drop(file);
        let after = fs::metadata(&path).unwrap();
        assert!(after.mtime() <= now() && after.ctime() <= now(), "and later");
    }
}

fn a_close_undoes_no_time_that_was_set(at: &Path) {
    let file = open(&at.join("file"), libc::O_RDWR | libc::O_CREAT, 0o644).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, &[1; 100_000], 0).unwrap();
    set_times_of(&file, (3, 4), (5, 6)).unwrap();
    drop(file);
    assert_eq!(stamps(&at.join("file")), ((3, 4), (5, 6)));
}
