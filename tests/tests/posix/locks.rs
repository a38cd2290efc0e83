//! flock(2), and the locks of fcntl(2): those of processes and those of open files.

use std::fs::{self, File};
use std::path::Path;
use std::sync::mpsc::channel;

use avidfs_tests::cases;
use avidfs_tests::files::{flock, lock, open};
use avidfs_tests::posix::{as_another_process, everywhere, refused};
use libc::{F_GETLK, F_OFD_GETLK, F_OFD_SETLK, F_RDLCK, F_SETLK, F_SETLKW, F_UNLCK, F_WRLCK, O_RDWR};
use libc::{LOCK_EX, LOCK_NB, LOCK_SH, LOCK_UN};

#[test]
fn locks() {
    everywhere(cases!(
        flock_excludes_other_open_files,
        flock_is_given_up_with_the_last_descriptor,
        a_waiting_flock_gets_its_turn,
        ranges_of_processes_exclude_each_other,
        a_process_that_closes_any_descriptor_loses_its_locks,
        a_lock_can_be_split_and_joined,
        two_who_wait_for_each_other_are_told,
        locks_of_open_files_exclude_each_other_within_a_process,
        flock_and_fcntl_do_not_know_each_other,
    ));
}

fn two(at: &Path) -> (File, File) {
    fs::write(at.join("file"), [0; 100]).unwrap();
    (open(&at.join("file"), O_RDWR, 0).unwrap(), open(&at.join("file"), O_RDWR, 0).unwrap())
}

fn flock_excludes_other_open_files(at: &Path) {
    let (one, two) = two(at);
    flock(&one, LOCK_SH).unwrap();
    flock(&two, LOCK_SH | LOCK_NB).unwrap();
    refused(libc::EWOULDBLOCK, flock(&one, LOCK_EX | LOCK_NB));
    flock(&two, LOCK_UN).unwrap();
    flock(&one, LOCK_EX | LOCK_NB).unwrap();
    refused(libc::EWOULDBLOCK, flock(&two, LOCK_SH | LOCK_NB));
}

fn flock_is_given_up_with_the_last_descriptor(at: &Path) {
    let (one, two) = two(at);
    flock(&one, LOCK_EX).unwrap();
    let copy = one.try_clone().unwrap();
    drop(one);
    refused(libc::EWOULDBLOCK, flock(&two, LOCK_EX | LOCK_NB));
    drop(copy);
    flock(&two, LOCK_EX | LOCK_NB).unwrap();
}

fn a_waiting_flock_gets_its_turn(at: &Path) {
    let (one, two) = two(at);
    flock(&one, LOCK_EX).unwrap();
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| flock(&two, LOCK_EX));
        flock(&one, LOCK_UN).unwrap();
        waiting.join().unwrap().unwrap();
    });
    refused(libc::EWOULDBLOCK, flock(&one, LOCK_EX | LOCK_NB));
}

fn ranges_of_processes_exclude_each_other(at: &Path) {
    let (one, two) = two(at);
    lock(&one, F_SETLK, F_WRLCK, 10, 10).unwrap();
    lock(&two, F_SETLK, F_RDLCK, 0, 0).unwrap();
    lock(&one, F_SETLK, F_WRLCK, 10, 10).unwrap();
    as_another_process(|| {
        refused(libc::EAGAIN, lock(&two, F_SETLK, F_WRLCK, 15, 1));
        refused(libc::EAGAIN, lock(&two, F_SETLK, F_RDLCK, 19, 100));
        lock(&two, F_SETLK, F_RDLCK, 20, 100).unwrap();
        let holder = lock(&two, F_GETLK, F_WRLCK, 0, 100).unwrap();
        assert_eq!((i32::from(holder.l_type), holder.l_start), (F_RDLCK, 0));
        assert_eq!(holder.l_pid, std::process::id() as i32);
        let free = lock(&two, F_GETLK, F_RDLCK, 0, 10).unwrap();
        assert_eq!(i32::from(free.l_type), F_UNLCK);
    });
}

fn a_process_that_closes_any_descriptor_loses_its_locks(at: &Path) {
    let (one, two) = two(at);
    lock(&one, F_SETLK, F_WRLCK, 0, 0).unwrap();
    as_another_process(|| refused(libc::EAGAIN, lock(&one, F_SETLK, F_WRLCK, 0, 0)));
    drop(two);
    as_another_process(|| lock(&one, F_SETLK, F_WRLCK, 0, 0)).unwrap();
}

fn a_lock_can_be_split_and_joined(at: &Path) {
    let (one, two) = two(at);
    lock(&one, F_SETLK, F_WRLCK, 0, 100).unwrap();
    lock(&one, F_SETLK, F_UNLCK, 40, 20).unwrap();
    as_another_process(|| {
        lock(&two, F_SETLK, F_WRLCK, 40, 20).unwrap();
        refused(libc::EAGAIN, lock(&two, F_SETLK, F_WRLCK, 39, 1));
        refused(libc::EAGAIN, lock(&two, F_SETLK, F_WRLCK, 60, 1));
    });
}

fn two_who_wait_for_each_other_are_told(at: &Path) {
    let (one, two) = two(at);
    let (ready, is_ready) = channel();
    lock(&one, F_SETLK, F_WRLCK, 0, 1).unwrap();
    std::thread::scope(|scope| {
        let other = scope.spawn(|| {
            as_another_process(|| {
                lock(&two, F_SETLK, F_WRLCK, 1, 1).unwrap();
                ready.send(()).unwrap();
                lock(&two, F_SETLKW, F_WRLCK, 0, 1).map(drop)
            })
        });
        is_ready.recv().unwrap();
        // Whoever asks last closes the circle and is told; the other then gets its lock.
        let mine = lock(&one, F_SETLKW, F_WRLCK, 1, 1).map(drop);
        lock(&one, F_SETLK, F_UNLCK, 0, 0).unwrap();
        let theirs = other.join().unwrap();
        let errors = [mine, theirs].map(|result| result.err().and_then(|error| error.raw_os_error()));
        assert!(errors.contains(&Some(libc::EDEADLK)) && errors.contains(&None), "{errors:?}");
    });
}

fn locks_of_open_files_exclude_each_other_within_a_process(at: &Path) {
    let (one, two) = two(at);
    lock(&one, F_OFD_SETLK, F_WRLCK, 0, 10).unwrap();
    refused(libc::EAGAIN, lock(&two, F_OFD_SETLK, F_RDLCK, 9, 5));
    lock(&two, F_OFD_SETLK, F_WRLCK, 10, 5).unwrap();
    let holder = lock(&two, F_OFD_GETLK, F_WRLCK, 0, 5).unwrap();
    assert_eq!((i32::from(holder.l_type), holder.l_pid), (F_WRLCK, -1));
    refused(libc::EAGAIN, lock(&two, F_SETLK, F_WRLCK, 0, 5));
    drop(one);
    lock(&two, F_OFD_SETLK, F_WRLCK, 0, 10).unwrap();
}

fn flock_and_fcntl_do_not_know_each_other(at: &Path) {
    let (one, two) = two(at);
    flock(&one, LOCK_EX).unwrap();
    as_another_process(|| lock(&two, F_SETLK, F_WRLCK, 0, 0)).unwrap();
}
