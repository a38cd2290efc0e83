//! The owner's key on this host: 64 hex digits in a file that nobody else may read.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

use common::paths::folder_of;
use common::wire::{NodeId, OwnerId};
use ed25519_dalek::SigningKey;
use rand::TryRngCore;
use rand::rngs::OsRng;

use super::ObjectError;
use crate::host::reason;

/// Longer files are no keys, and are not read.
const LONGEST: u64 = 1024;

/// Read the key in a file.
///
/// # Errors
/// `Owner`: there is none, others may read it, or it is something else.
pub fn read(path: &Path) -> Result<SigningKey, ObjectError> {
    let shown = path.display();
    let unusable =
        |error: &io::Error| ObjectError::Owner(format!("the owner's key {shown}: {}", reason(error)));
    let file = File::open(path).map_err(|error| match error.kind() {
        ErrorKind::NotFound => ObjectError::Owner(format!(
            "there is no owner's key at {shown}: the first put makes one; --owner reads what is somebody else's"
        )),
        _ => unusable(&error),
    })?;
    let mode = file.metadata().map_err(|error| unusable(&error))?.permissions().mode();
    if mode & 0o077 != 0 {
        return Err(ObjectError::Owner(format!(
            "others may read or change the owner's key: chmod 600 {shown}"
        )));
    }
    let mut text = String::new();
    file.take(LONGEST).read_to_string(&mut text).map_err(|error| unusable(&error))?;
    let secret: Option<OwnerId> = text.trim_end().parse().ok();
    let wrong = || ObjectError::Owner(format!("{shown} is not an owner's key: 64 lower-case hex digits"));
    Ok(SigningKey::from_bytes(&secret.ok_or_else(wrong)?.0))
}

/// Read the key in a file, or draw one and keep it there. Of several that do so at once one is kept, and all have that.
///
/// # Errors
/// As `read`, or it cannot be kept.
pub fn read_or_make(path: &Path) -> Result<SigningKey, ObjectError> {
    if !path.exists() {
        make(path).map_err(|error| {
            ObjectError::Owner(format!(
                "no owner's key can be kept at {}: {}",
                path.display(),
                reason(&error)
            ))
        })?;
    }
    read(path)
}

/// Under another name first, so that no half of a key is ever found; then under its own, unless that is taken by now.
fn make(path: &Path) -> io::Result<()> {
    let folder = folder_of(path);
    DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    let (mut secret, mut number) = ([0; 32], [0; 16]);
    OsRng.try_fill_bytes(&mut secret).map_err(io::Error::other)?;
    OsRng.try_fill_bytes(&mut number).map_err(io::Error::other)?;
    let draft = folder.join(format!(".owner.key.{}", NodeId(number)));
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&draft)?;
    let written = file.write_all(format!("{}\n", OwnerId(secret)).as_bytes()).and_then(|()| file.sync_all());
    let named = written.and_then(|()| match fs::hard_link(&draft, path) {
        Err(error) if error.kind() != ErrorKind::AlreadyExists => Err(error),
        _ => Ok(()),
    });
    fs::remove_file(&draft)?;
    named?;
    File::open(folder)?.sync_all()
}

/// What a key's owner is called.
pub fn owner_of(secret: &SigningKey) -> OwnerId {
    OwnerId(secret.verifying_key().to_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set_mode(path: &Path, mode: u32) {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn a_key_is_made_once_for_its_owner_alone_and_is_there_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("share/avidfs/owner.key");
        let made = read_or_make(&path).unwrap();
        assert_eq!(read_or_make(&path).unwrap(), made);
        assert_eq!(read(&path).unwrap(), made);
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let text = fs::read_to_string(&path).unwrap();
        assert_eq!(text, format!("{}\n", OwnerId(made.to_bytes())));
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1, "no draft is left");
    }

    #[test]
    fn what_somebody_else_made_meanwhile_stays() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("owner.key");
        make(&path).unwrap();
        let first = read(&path).unwrap();
        make(&path).unwrap();
        assert_eq!(read(&path).unwrap(), first);
    }

    #[test]
    fn a_key_that_others_may_read_and_what_is_no_key_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("owner.key");
        let sentence = |path: &Path| read(path).unwrap_err().to_string();
        assert!(sentence(&path).contains("there is no owner's key at"));
        read_or_make(&path).unwrap();
        for mode in [0o640, 0o604, 0o620, 0o602] {
            set_mode(&path, mode);
            assert!(sentence(&path).contains("chmod 600"), "{mode:o}");
        }
        set_mode(&path, 0o600);
        for text in ["", "00", &"0".repeat(63), &"AB".repeat(32), &"00".repeat(2000)] {
            fs::write(&path, text).unwrap();
            assert!(sentence(&path).contains("is not an owner's key"), "{text:?}");
        }
    }
}
