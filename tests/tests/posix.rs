//! What programs expect of a POSIX directory, one file per operation. Each case is a function that is given an empty
//! directory; it runs on ext4 first, so that what it expects is ext4's, and then on a mount. Users and groups are
//! real, hence root.

#![allow(clippy::unwrap_used)]

mod posix {
    mod access_time;
    mod acl;
    mod allocate;
    mod append;
    mod chmod;
    mod chown;
    mod copy;
    mod direct;
    mod limits;
    mod link;
    mod listing;
    mod locks;
    mod mapped;
    mod mkdir;
    mod mknod;
    mod open;
    mod rename;
    mod set_id;
    mod space;
    mod sparse;
    mod sticky;
    mod symlink;
    mod times;
    mod truncate;
    mod unlink;
    mod unsupported;
    mod xattr;
}
