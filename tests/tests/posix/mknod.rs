//! mknod(2): pipes, sockets, devices.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

use avidfs_tests::cases;
use avidfs_tests::files::{make_node, open};
use avidfs_tests::posix::{NOBODY, everywhere, refused};

#[test]
fn mknod() {
    everywhere(cases!(
        a_pipe_joins_two_who_know_its_name,
        a_pipe_nobody_reads_is_not_opened_without_waiting,
        a_socket_is_bound_and_connected_by_its_name,
        a_device_is_the_device,
        a_regular_file_can_be_made_as_well,
        devices_are_made_by_root_alone,
    ));
}

fn a_pipe_joins_two_who_know_its_name(at: &Path) {
    let path = at.join("pipe");
    make_node(&path, libc::S_IFIFO | 0o644, 0).unwrap();
    assert!(fs::metadata(&path).unwrap().file_type().is_fifo());
    let text = std::thread::scope(|scope| {
        scope.spawn(|| File::create(&path).unwrap().write_all(b"through").unwrap());
        let mut text = String::new();
        File::open(&path).unwrap().read_to_string(&mut text).unwrap();
        text
    });
    assert_eq!(text, "through");
    assert_eq!(fs::metadata(&path).unwrap().len(), 0);
}

fn a_pipe_nobody_reads_is_not_opened_without_waiting(at: &Path) {
    make_node(&at.join("pipe"), libc::S_IFIFO | 0o644, 0).unwrap();
    refused(libc::ENXIO, open(&at.join("pipe"), libc::O_WRONLY | libc::O_NONBLOCK, 0));
}

fn a_socket_is_bound_and_connected_by_its_name(at: &Path) {
    // The address of a socket has room for 107 bytes of path.
    let short = tempfile::Builder::new().prefix("avidfs-tests-link-").tempdir().unwrap();
    let path = short.path().join("d");
    std::os::unix::fs::symlink(at, &path).unwrap();
    let path = path.join("s");
    let listener = UnixListener::bind(&path).unwrap();
    assert!(fs::metadata(at.join("s")).unwrap().file_type().is_socket());
    let mut client = UnixStream::connect(&path).unwrap();
    let (mut server, _) = listener.accept().unwrap();
    client.write_all(b"hello").unwrap();
    drop(client);
    let mut text = String::new();
    server.read_to_string(&mut text).unwrap();
    assert_eq!(text, "hello");
    refused(libc::EADDRINUSE, UnixListener::bind(&path));
}

fn a_device_is_the_device(at: &Path) {
    let null = libc::makedev(1, 3);
    make_node(&at.join("null"), libc::S_IFCHR | 0o666, null).unwrap();
    let device = fs::metadata(at.join("null")).unwrap();
    assert!(device.file_type().is_char_device());
    assert_eq!((device.rdev(), device.mode() & 0o777), (null, 0o644));
    fs::write(at.join("null"), "swallowed").unwrap();
    assert_eq!(fs::read(at.join("null")).unwrap(), b"");
    make_node(&at.join("disk"), libc::S_IFBLK | 0o600, libc::makedev(259, 70_000)).unwrap();
    assert_eq!(fs::metadata(at.join("disk")).unwrap().rdev(), libc::makedev(259, 70_000));
}

fn a_regular_file_can_be_made_as_well(at: &Path) {
    make_node(&at.join("file"), libc::S_IFREG | 0o640, 0).unwrap();
    fs::write(at.join("file"), "text").unwrap();
    let file = fs::metadata(at.join("file")).unwrap();
    assert!(file.is_file() && file.mode() & 0o7777 == 0o640);
    refused(libc::EEXIST, make_node(&at.join("file"), libc::S_IFIFO | 0o640, 0));
}

fn devices_are_made_by_root_alone(at: &Path) {
    fs::set_permissions(at, fs::Permissions::from_mode(0o777)).unwrap();
    NOBODY.does(|| {
        refused(libc::EPERM, make_node(&at.join("null"), libc::S_IFCHR | 0o666, libc::makedev(1, 3)));
        refused(libc::EPERM, make_node(&at.join("disk"), libc::S_IFBLK | 0o666, libc::makedev(8, 0)));
        make_node(&at.join("pipe"), libc::S_IFIFO | 0o600, 0).unwrap();
    });
}
