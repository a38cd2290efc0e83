//! Access control lists, as setfacl(1) sets and getfacl(1) shows them.

use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt, chown, symlink};
use std::path::Path;
use std::process::Command;

use avidfs_tests::cases;
use avidfs_tests::files::{make_node, open, remove_xattr, set_xattr, xattr, xattrs};
use avidfs_tests::mount::Mount;
use avidfs_tests::posix::{BIN, DAEMON, NOBODY, everywhere, refused, tick, with_umask};
use avidfs_tests::process::{need_program, output, run};

const ACCESS: &str = "system.posix_acl_access";
const DEFAULT: &str = "system.posix_acl_default";

#[test]
fn lists() {
    need_program("setfacl");
    need_program("getfacl");
    everywhere(cases!(
        a_named_user_gets_what_the_list_says,
        a_named_group_gets_what_the_list_says,
        the_mask_bounds_everyone_but_owner_and_others,
        the_owner_is_checked_by_his_own_entry,
        chmod_changes_the_mask_and_not_the_group,
        the_groups_bits_show_the_mask,
        a_list_that_says_no_more_than_the_mode_is_the_mode,
        taking_the_list_away_leaves_a_mode,
        a_list_outlives_a_rename_and_is_seen_by_every_name,
        setting_a_list_moves_ctime,
        chown_keeps_the_list,
    ));
}

#[test]
fn default_lists() {
    need_program("setfacl");
    everywhere(cases!(
        what_is_made_begins_with_the_default_list,
        the_umask_counts_only_without_a_default_list,
        a_directory_hands_its_default_on,
        a_minimal_default_gives_modes_and_no_lists,
        a_default_list_grants_nothing_itself,
        pipes_inherit_and_links_do_not,
        a_default_list_is_for_directories_alone,
        taking_the_default_away_brings_the_umask_back,
    ));
}

#[test]
fn rights_over_lists() {
    need_program("setfacl");
    everywhere(cases!(
        only_the_owner_and_root_set_a_list,
        set_group_id_goes_when_one_who_is_not_of_the_group_sets_a_list,
        set_group_id_stays_when_a_member_or_root_sets_a_list,
        a_malformed_list_is_refused,
        a_list_is_kept_by_tools_that_copy_attributes,
        a_link_has_no_list,
    ));
}

#[test]
fn lists_outlive_a_remount() {
    need_program("setfacl");
    let mount = Mount::embedded(&[]);
    fs::set_permissions(mount.root().parent().unwrap(), fs::Permissions::from_mode(0o755)).unwrap();
    fs::set_permissions(mount.root(), fs::Permissions::from_mode(0o755)).unwrap();
    let (path, directory) = (file(&mount.root(), 0o600), mount.path("dir"));
    fs::create_dir(&directory).unwrap();
    setfacl(&["-m", "u:1:rw"], &path);
    setfacl(&["-m", "u:1:rwx", "-m", "d:u:1:rwx"], &directory);
    let lists = || (getfacl(&path), getfacl(&directory), mode(&path), mode(&directory));
    let before = lists();
    mount.remount();
    assert_eq!(lists(), before);
    DAEMON.does(|| fs::write(directory.join("file"), "x")).unwrap();
    assert!(DAEMON.does(|| may_write(&path)));
    assert!(getfacl(&directory.join("file")).contains("user:1:rwx"));
}

fn setfacl(words: &[&str], path: &Path) {
    run(Command::new("setfacl").args(words).arg(path));
}

/// The list without comments, on one line.
fn getfacl(path: &Path) -> String {
    let text = run(Command::new("getfacl").args(["-cpnE"]).arg(path));
    text.split_whitespace().collect::<Vec<_>>().join(",")
}

fn mode(path: &Path) -> u32 {
    fs::symlink_metadata(path).unwrap().mode() & 0o7777
}

fn chmod(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

fn file(at: &Path, mode: u32) -> std::path::PathBuf {
    let path = at.join("file");
    fs::write(&path, "text").unwrap();
    chmod(&path, mode);
    path
}

fn may_read(path: &Path) -> bool {
    open(path, libc::O_RDONLY, 0).is_ok()
}

fn may_write(path: &Path) -> bool {
    open(path, libc::O_WRONLY, 0).is_ok()
}

fn a_named_user_gets_what_the_list_says(at: &Path) {
    let path = file(at, 0o640);
    assert!(!NOBODY.does(|| may_read(&path)));
    setfacl(&["-m", "u:65534:r"], &path);
    assert!(NOBODY.does(|| may_read(&path) && !may_write(&path)));
    assert!(!DAEMON.does(|| may_read(&path)));
    setfacl(&["-m", "u:65534:rw"], &path);
    assert!(NOBODY.does(|| may_read(&path) && may_write(&path)));
    setfacl(&["-m", "u:65534:-,o::rw"], &path);
    assert!(!NOBODY.does(|| may_read(&path)), "less than others");
    assert!(DAEMON.does(|| may_write(&path)));
}

fn a_named_group_gets_what_the_list_says(at: &Path) {
    let path = file(at, 0o600);
    setfacl(&["-m", "g:1:rw"], &path);
    assert!(DAEMON.does(|| may_write(&path)), "by his group");
    assert!(BIN.does(|| may_write(&path)), "by a further group");
    assert!(!NOBODY.does(|| may_read(&path)));
    setfacl(&["-m", "g:1:-,g:2:r,o::rw"], &path);
    assert!(BIN.does(|| may_read(&path) && !may_write(&path)), "one of the groups is enough");
    assert!(!DAEMON.does(|| may_read(&path)));
}

fn the_mask_bounds_everyone_but_owner_and_others(at: &Path) {
    let path = file(at, 0o666);
    chown(&path, Some(BIN.uid), Some(0)).unwrap();
    setfacl(&["-m", "u:65534:rw,g:1:rw,m::r"], &path);
    assert!(NOBODY.does(|| may_read(&path) && !may_write(&path)));
    assert!(DAEMON.does(|| may_read(&path) && !may_write(&path)));
    assert!(BIN.does(|| may_write(&path)), "the owner");
    chown(&path, Some(0), Some(2)).unwrap();
    setfacl(&["-x", "g:1"], &path);
    setfacl(&["-m", "m::r"], &path);
    assert!(BIN.does(|| !may_write(&path)), "the owning group");
    assert!(DAEMON.does(|| may_write(&path)), "others");
}

fn the_owner_is_checked_by_his_own_entry(at: &Path) {
    let path = file(at, 0o644);
    chown(&path, Some(NOBODY.uid), Some(NOBODY.gid)).unwrap();
    setfacl(&["-m", "u::-,u:65534:rw,g::rw"], &path);
    assert!(!NOBODY.does(|| may_read(&path)));
}

fn chmod_changes_the_mask_and_not_the_group(at: &Path) {
    let path = file(at, 0o640);
    setfacl(&["-m", "u:1:rwx,g::rx"], &path);
    assert_eq!(getfacl(&path), "user::rw-,user:1:rwx,group::r-x,mask::rwx,other::---");
    chmod(&path, 0o4710);
    assert_eq!(getfacl(&path), "user::rwx,user:1:rwx,group::r-x,mask::--x,other::---");
    assert!(!DAEMON.does(|| may_read(&path)));
    chmod(&path, 0o660);
    assert_eq!(getfacl(&path), "user::rw-,user:1:rwx,group::r-x,mask::rw-,other::---");
    assert_eq!(mode(&path), 0o660);
    assert!(DAEMON.does(|| may_write(&path)));
}

fn the_groups_bits_show_the_mask(at: &Path) {
    let path = file(at, 0o600);
    setfacl(&["-m", "u:1:r,m::rwx,o::x"], &path);
    assert_eq!(mode(&path), 0o671);
    setfacl(&["-m", "u::rwx,m::-"], &path);
    assert_eq!(mode(&path), 0o701);
    chmod(&path, 0o7777);
    setfacl(&["-m", "u:1:-"], &path);
    assert_eq!(mode(&path) & 0o7000, 0o7000, "the other bits stay");
}

fn a_list_that_says_no_more_than_the_mode_is_the_mode(at: &Path) {
    let path = file(at, 0o600);
    setfacl(&["-m", "u::rwx,g::rx,o::r"], &path);
    assert_eq!(mode(&path), 0o754);
    refused(libc::ENODATA, xattr(&path, ACCESS));
    assert_eq!(xattrs(&path).unwrap(), [""; 0]);
    setfacl(&["-m", "m::rw"], &path);
    assert_eq!(xattrs(&path).unwrap(), [ACCESS], "a mask says more");
    assert_eq!((mode(&path), getfacl(&path)), (0o764, "user::rwx,group::r-x,mask::rw-,other::r--".into()));
}

fn taking_the_list_away_leaves_a_mode(at: &Path) {
    let path = file(at, 0o640);
    setfacl(&["-m", "u:1:rwx"], &path);
    assert_eq!(mode(&path), 0o670);
    setfacl(&["-b"], &path);
    assert_eq!((mode(&path), getfacl(&path)), (0o640, "user::rw-,group::r--,other::---".into()));
    setfacl(&["-m", "u:1:rwx"], &path);
    remove_xattr(&path, ACCESS).unwrap();
    assert_eq!(mode(&path), 0o670, "removexattr(2) leaves the bits as they show");
    assert!(!DAEMON.does(|| may_read(&path)));
    refused(libc::ENODATA, xattr(&path, ACCESS));
}

fn a_list_outlives_a_rename_and_is_seen_by_every_name(at: &Path) {
    let path = file(at, 0o600);
    setfacl(&["-m", "u:1:r"], &path);
    fs::hard_link(&path, at.join("other")).unwrap();
    fs::rename(&path, at.join("moved")).unwrap();
    assert_eq!(getfacl(&at.join("moved")), getfacl(&at.join("other")));
    setfacl(&["-m", "u:1:rw"], &at.join("other"));
    assert!(DAEMON.does(|| may_write(&at.join("moved"))));
}

fn setting_a_list_moves_ctime(at: &Path) {
    let path = file(at, 0o600);
    let before = fs::metadata(&path).unwrap();
    tick();
    setfacl(&["-m", "u:1:r"], &path);
    let after = fs::metadata(&path).unwrap();
    assert!((after.ctime(), after.ctime_nsec()) > (before.ctime(), before.ctime_nsec()));
    assert_eq!((after.mtime(), after.mtime_nsec()), (before.mtime(), before.mtime_nsec()));
}

fn chown_keeps_the_list(at: &Path) {
    let path = file(at, 0o600);
    setfacl(&["-m", "u:1:r"], &path);
    chown(&path, Some(2), Some(2)).unwrap();
    assert!(DAEMON.does(|| may_read(&path)) && BIN.does(|| may_write(&path)));
}

fn what_is_made_begins_with_the_default_list(at: &Path) {
    setfacl(&["-d", "-m", "u::rwx,u:1:rwx,g::rx,m::rwx,o::-"], at);
    let made = |name: &str, mode| drop(open(&at.join(name), libc::O_CREAT | libc::O_WRONLY, mode).unwrap());
    made("666", 0o666);
    assert_eq!(getfacl(&at.join("666")), "user::rw-,user:1:rwx,group::r-x,mask::rw-,other::---");
    assert_eq!(mode(&at.join("666")), 0o660);
    made("640", 0o640);
    assert_eq!(getfacl(&at.join("640")), "user::rw-,user:1:rwx,group::r-x,mask::r--,other::---");
    made("4777", 0o4777);
    assert_eq!(mode(&at.join("4777")), 0o4770);
    chmod(at, 0o777);
    assert!(DAEMON.does(|| may_write(&at.join("666")) && !may_write(&at.join("640"))));
}

fn the_umask_counts_only_without_a_default_list(at: &Path) {
    for name in ["with", "without"] {
        fs::create_dir(at.join(name)).unwrap();
    }
    setfacl(&["-d", "-m", "u::rwx,g::rwx,o::rwx"], &at.join("with"));
    with_umask(0o077, || {
        for name in ["with", "without"] {
            drop(open(&at.join(name).join("file"), libc::O_CREAT | libc::O_WRONLY, 0o666).unwrap());
            fs::create_dir(at.join(name).join("dir")).unwrap();
        }
    });
    assert_eq!((mode(&at.join("with/file")), mode(&at.join("with/dir"))), (0o666, 0o777));
    assert_eq!((mode(&at.join("without/file")), mode(&at.join("without/dir"))), (0o600, 0o700));
}

fn a_directory_hands_its_default_on(at: &Path) {
    setfacl(&["-d", "-m", "u:1:rx"], at);
    let default =
        "default:user::rwx,default:user:1:r-x,default:group::r-x,default:mask::r-x,default:other::r-x";
    fs::DirBuilder::new().mode(0o700).create(at.join("dir")).unwrap();
    let wanted = format!("user::rwx,user:1:r-x,group::r-x,mask::---,other::---,{default}");
    assert_eq!(getfacl(&at.join("dir")), wanted);
    fs::create_dir_all(at.join("a/b/c")).unwrap();
    let wanted = format!("user::rwx,user:1:r-x,group::r-x,mask::r-x,other::r-x,{default}");
    assert_eq!(getfacl(&at.join("a/b/c")), wanted);
    fs::write(at.join("a/b/c/file"), "").unwrap();
    assert_eq!(getfacl(&at.join("a/b/c/file")), "user::rw-,user:1:r-x,group::r-x,mask::r--,other::r--");
}

fn a_minimal_default_gives_modes_and_no_lists(at: &Path) {
    setfacl(&["-d", "-m", "u::rwx,g::r,o::-"], at);
    fs::write(at.join("file"), "").unwrap();
    assert_eq!((mode(&at.join("file")), xattrs(&at.join("file")).unwrap()), (0o640, vec![]));
    fs::create_dir(at.join("dir")).unwrap();
    assert_eq!((mode(&at.join("dir")), xattrs(&at.join("dir")).unwrap()), (0o740, vec![DEFAULT.to_owned()]));
}

fn a_default_list_grants_nothing_itself(at: &Path) {
    fs::create_dir(at.join("dir")).unwrap();
    setfacl(&["-d", "-m", "u:1:rwx"], &at.join("dir"));
    refused(libc::EACCES, DAEMON.does(|| fs::write(at.join("dir/file"), "")));
    setfacl(&["-m", "u:1:rwx"], &at.join("dir"));
    DAEMON.does(|| fs::write(at.join("dir/file"), "")).unwrap();
    assert_eq!(mode(&at.join("dir")), 0o775);
}

fn pipes_inherit_and_links_do_not(at: &Path) {
    setfacl(&["-d", "-m", "u:1:rw"], at);
    make_node(&at.join("pipe"), libc::S_IFIFO | 0o660, 0).unwrap();
    assert_eq!(getfacl(&at.join("pipe")), "user::rw-,user:1:rw-,group::r-x,mask::rw-,other::---");
    symlink("nowhere", at.join("link")).unwrap();
    assert_eq!(mode(&at.join("link")), 0o777);
}

fn a_default_list_is_for_directories_alone(at: &Path) {
    let path = file(at, 0o644);
    setfacl(&["-d", "-m", "u:1:r"], at);
    let default = xattr(at, DEFAULT).unwrap();
    refused(libc::EACCES, set_xattr(&path, DEFAULT, &default, 0));
    refused(libc::ENODATA, xattr(&path, DEFAULT));
}

fn taking_the_default_away_brings_the_umask_back(at: &Path) {
    setfacl(&["-d", "-m", "u:1:rwx,o::rwx"], at);
    setfacl(&["-k"], at);
    refused(libc::ENODATA, xattr(at, DEFAULT));
    fs::write(at.join("file"), "").unwrap();
    assert_eq!((mode(&at.join("file")), xattrs(&at.join("file")).unwrap()), (0o644, vec![]));
}

/// The bytes of a list that names a user, taken from a file beside it.
fn a_list(at: &Path) -> Vec<u8> {
    fs::write(at.join("pattern"), "").unwrap();
    setfacl(&["-m", "u::rwx,u:1:rwx,g::rwx,m::rwx"], &at.join("pattern"));
    xattr(&at.join("pattern"), ACCESS).unwrap()
}

fn only_the_owner_and_root_set_a_list(at: &Path) {
    let (list, path) = (a_list(at), file(at, 0o666));
    chown(&path, Some(BIN.uid), Some(BIN.gid)).unwrap();
    let set = || set_xattr(&path, ACCESS, &list, 0);
    refused(libc::EPERM, NOBODY.does(set));
    refused(libc::EPERM, NOBODY.does(|| remove_xattr(&path, ACCESS)));
    BIN.does(set).unwrap();
    set().unwrap();
    assert_eq!(NOBODY.does(|| xattr(&path, ACCESS)).unwrap(), list, "everyone may read it");
}

fn set_group_id_goes_when_one_who_is_not_of_the_group_sets_a_list(at: &Path) {
    let (list, path) = (a_list(at), file(at, 0o644));
    chown(&path, Some(NOBODY.uid), Some(DAEMON.gid)).unwrap();
    chmod(&path, 0o6755);
    NOBODY.does(|| set_xattr(&path, ACCESS, &list, 0)).unwrap();
    assert_eq!(mode(&path), 0o4774);
}

fn set_group_id_stays_when_a_member_or_root_sets_a_list(at: &Path) {
    let (list, path) = (a_list(at), file(at, 0o644));
    chown(&path, Some(BIN.uid), Some(DAEMON.gid)).unwrap();
    chmod(&path, 0o6755);
    BIN.does(|| set_xattr(&path, ACCESS, &list, 0)).unwrap();
    assert_eq!(mode(&path), 0o6774, "a member by a further group");
    set_xattr(&path, ACCESS, &list, 0).unwrap();
    assert_eq!(mode(&path), 0o6774);
}

fn a_malformed_list_is_refused(at: &Path) {
    let (list, path) = (a_list(at), file(at, 0o644));
    let set = |bytes: &[u8]| set_xattr(&path, ACCESS, bytes, 0);
    refused(libc::EINVAL, set(&list[..list.len() - 1]));
    refused(libc::EINVAL, set(&list[..list.len() - 8]));
    refused(libc::EINVAL, set(b"x"));
    let swapped = [&list[..4], &list[12..20], &list[4..12], &list[20..]].concat();
    refused(libc::EINVAL, set(&swapped));
    let twice = [&list[..12], &list[4..]].concat();
    refused(libc::EINVAL, set(&twice));
    assert_eq!(mode(&path), 0o644);
}

fn a_list_is_kept_by_tools_that_copy_attributes(at: &Path) {
    let path = file(at, 0o640);
    setfacl(&["-m", "u:1:rw,g:2:r"], &path);
    run(Command::new("cp").arg("-a").arg(&path).arg(at.join("copy")));
    assert_eq!(getfacl(&at.join("copy")), getfacl(&path));
    run(Command::new("tar").arg("-C").arg(at).args(["--acls", "-cf"]).arg(at.join("tar")).arg("file"));
    fs::create_dir(at.join("out")).unwrap();
    run(Command::new("tar").arg("-C").arg(at.join("out")).args(["--acls", "-xpf"]).arg(at.join("tar")));
    assert_eq!(getfacl(&at.join("out/file")), getfacl(&path));
}

fn a_link_has_no_list(at: &Path) {
    symlink("nowhere", at.join("link")).unwrap();
    let shown = output(Command::new("getfacl").arg(at.join("link")));
    assert!(!shown.status.success(), "it would be that of what it points to");
    let attributes: io::Result<Vec<String>> = xattrs(&at.join("link"));
    refused(libc::ENOENT, attributes);
}
