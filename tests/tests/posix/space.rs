//! statvfs(3) and what files take: st_blocks.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use avidfs_tests::cases;
use avidfs_tests::mount::statfs;
use avidfs_tests::posix::everywhere;

#[test]
fn space() {
    everywhere(cases!(
        figures_of_the_file_system_make_sense,
        a_file_takes_what_was_written,
        files_and_directories_are_on_one_device,
    ));
}

fn figures_of_the_file_system_make_sense(at: &Path) {
    let found = statfs(at).unwrap();
    assert!(found.f_bavail <= found.f_bfree && found.f_bfree <= found.f_blocks);
    assert!(found.f_blocks > 0 && found.f_ffree > 0 && found.f_ffree <= found.f_files);
    assert_eq!((found.f_namemax, found.f_frsize), (255, 4096));
}

fn a_file_takes_what_was_written(at: &Path) {
    assert_eq!(fs::metadata(at).unwrap().blksize(), 4096);
    fs::write(at.join("file"), vec![1; 1 << 20]).unwrap();
    fs::File::open(at.join("file")).unwrap().sync_all().unwrap();
    let blocks = fs::metadata(at.join("file")).unwrap().blocks();
    assert!((2048..2100).contains(&blocks), "{blocks} blocks");
    fs::write(at.join("empty"), "").unwrap();
    assert_eq!(fs::metadata(at.join("empty")).unwrap().blocks(), 0);
}

fn files_and_directories_are_on_one_device(at: &Path) {
    fs::create_dir(at.join("dir")).unwrap();
    fs::write(at.join("dir/file"), "").unwrap();
    let device = |path: &Path| fs::metadata(path).unwrap().dev();
    assert_eq!(device(at), device(&at.join("dir/file")));
    assert_ne!(device(at), fs::metadata("/dev/shm").unwrap().dev());
}
