//! What mount(8) and umount(8) ask of the programs `mount.avidfs` and `umount.avidfs`, put into words of `avidfs`.
//! Both are this program under another name.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::process::Command;

use clap::Parser;

/// For whom this program is called.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Caller {
    /// mount(8).
    Mount,
    /// umount(8).
    Umount,
    /// This program, to ask a mount whose daemon may hang.
    Asking,
}

/// The name under which it calls itself.
pub const ASKING: &str = "avidfs-asking";

impl Caller {
    /// As the name says under which it is called; `None` for a person who calls it `avidfs`.
    pub fn of(program: &OsStr) -> Option<Caller> {
        match Path::new(program).file_name()?.to_str()? {
            "mount.avidfs" | "mount.fuse.avidfs" => Some(Caller::Mount),
            // The last one is what umount(8) looks for when it has asked the mount and not the list of mounts.
            "umount.avidfs" | "umount.fuse.avidfs" | "umount.fuse" => Some(Caller::Umount),
            ASKING => Some(Caller::Asking),
            _ => None,
        }
    }
}

/// Mount a volume of avidfs, as mount(8) asks for it.
#[derive(Parser, Debug)]
#[command(name = "mount.avidfs", version, max_term_width = 100, after_help = MOUNT_HELP)]
pub struct MountHelper {
    /// The volume: its name, `avidfs:` and its name, or `none` for the volume `default`
    pub source: String,
    /// An empty directory
    pub mountpoint: PathBuf,
    /// Ignore options that nobody knows
    #[arg(short = 's')]
    pub sloppy: bool,
    /// Check the options and do nothing
    #[arg(short = 'f')]
    pub fake: bool,
    /// Nothing: there is no table of mounts to be written
    #[arg(short = 'n')]
    pub no_mtab: bool,
    /// Nothing: what went wrong is said anyway
    #[arg(short = 'v')]
    pub verbose: bool,
    /// The mount namespace to mount in: a process, or a file such as /proc/PID/ns/mnt
    #[arg(short = 'N', value_name = "NAMESPACE")]
    pub namespace: Option<String>,
    /// The type: avidfs or fuse.avidfs
    #[arg(short = 't', value_name = "TYPE")]
    pub kind: Option<String>,
    /// Options of mount(8), and those of avidfs-mount(1) without the dashes: code=3+2, peers=URL,URL
    #[arg(short = 'o', value_name = "OPTIONS", allow_hyphen_values = true)]
    pub options: Vec<String>,
}

const MOUNT_HELP: &str = "\
Called by `mount -t avidfs`, and for lines of /etc/fstab such as
avidfs:files /mnt/files avidfs _netdev,nofail,peers=URL,URL,.. 0 0
Of ro and rw, nosuid and suid and the like the last one counts.
With remount, ro, rw, nosuid, nodev and noexec take effect at once, and all else when the volume is mounted again.
It ends with 0 when the mount answers, 1 for a wrong command line, 2 for an error of the system, 32 if nothing is mounted.";

/// What is to be done.
#[derive(PartialEq, Eq, Debug)]
pub enum Wish {
    /// `avidfs` with these words.
    Mount(Vec<OsString>),
    /// Change the flags of the mount that is there.
    Remount(Vec<String>),
}

impl MountHelper {
    /// What mount(8) wants.
    ///
    /// # Errors
    /// The source is no volume's name, in a sentence.
    pub fn wish(&self) -> Result<Wish, String> {
        let options = self.options.iter().flat_map(|list| list.split(','));
        if options.clone().any(|option| option == "remount") {
            return Ok(Wish::Remount(options.map(str::to_owned).collect()));
        }
        let mut own = format!("fsname={}", self.source);
        if let Some(volume) = volume_of(&self.source)? {
            own = format!("{own},volume={volume}");
        }
        let mut words = vec!["mount".into()];
        words.extend(self.sloppy.then(|| "-s".into()));
        // First, so that `-o volume=` has the last word.
        for list in std::iter::once(&own).chain(&self.options) {
            words.push(OsString::from(format!("-o{list}")));
        }
        words.push("--".into());
        words.push(self.mountpoint.clone().into());
        Ok(Wish::Mount(words))
    }
}

/// The volume that a source names; `None` for the one without a name.
fn volume_of(source: &str) -> Result<Option<&str>, String> {
    match source.strip_prefix("avidfs:").unwrap_or(source) {
        "" | "none" | "avidfs" => Ok(None),
        // mount(8) makes a path of a name when there is a file of that name.
        path if path.contains('/') => {
            let name = path.rsplit('/').next().unwrap_or_default();
            Err(format!("{source} is a path and no volume's name: write avidfs:{name} for the volume {name}"))
        }
        name => Ok(Some(name)),
    }
}

/// Store everything, unmount, and return when the mount daemon has ended, as umount(8) asks for it.
#[derive(Parser, Debug)]
#[command(name = "umount.avidfs", version, max_term_width = 100)]
pub struct UmountHelper {
    /// Where the volume is mounted
    pub mountpoint: PathBuf,
    /// Detach it now from the tree of names; it is stored when nobody uses it any more
    #[arg(short = 'l')]
    pub lazy: bool,
    /// Unmount although the daemon does not answer; what it has not yet been given is lost
    #[arg(short = 'f')]
    pub force: bool,
    /// If it is in use, mount it read-only instead
    #[arg(short = 'r')]
    pub read_only: bool,
    /// Nothing: there is no table of mounts to be written
    #[arg(short = 'n')]
    pub no_mtab: bool,
    /// Nothing: what went wrong is said anyway
    #[arg(short = 'v')]
    pub verbose: bool,
    /// The mount namespace to unmount in: a process, or a file such as /proc/PID/ns/mnt
    #[arg(short = 'N', value_name = "NAMESPACE")]
    pub namespace: Option<String>,
    /// The type: avidfs or fuse.avidfs
    #[arg(short = 't', value_name = "TYPE")]
    pub kind: Option<String>,
}

impl UmountHelper {
    /// What umount(8) does without a helper: for mounts of other programs, whose helper this is as well when it is
    /// called umount.fuse.
    pub fn without_us(&self) -> Command {
        let flags = [(self.lazy, "-l"), (self.force, "-f"), (self.read_only, "-r"), (self.no_mtab, "-n")];
        let mut umount = Command::new("umount");
        umount.arg("-i").args(flags.into_iter().filter_map(|(given, flag)| given.then_some(flag)));
        umount.arg("--").arg(&self.mountpoint);
        umount
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    fn wish(line: &str) -> Result<Wish, String> {
        MountHelper::try_parse_from(line.split_whitespace()).unwrap().wish()
    }

    fn words(line: &str) -> String {
        let Ok(Wish::Mount(words)) = wish(line) else { panic!("no mount: {line}") };
        words.iter().map(|word| word.to_str().unwrap()).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn the_command_lines_are_consistent() {
        MountHelper::command().debug_assert();
        UmountHelper::command().debug_assert();
    }

    #[test]
    fn the_name_says_who_calls() {
        for (program, caller) in [
            ("/sbin/mount.fuse.avidfs", Some(Caller::Mount)),
            ("mount.avidfs", Some(Caller::Mount)),
            ("/sbin/umount.avidfs", Some(Caller::Umount)),
            ("umount.fuse.avidfs", Some(Caller::Umount)),
            ("/sbin/umount.fuse", Some(Caller::Umount)),
            ("avidfs-asking", Some(Caller::Asking)),
            ("/usr/local/bin/avidfs", None),
        ] {
            assert_eq!(Caller::of(OsStr::new(program)), caller, "{program}");
        }
    }

    #[test]
    fn the_source_is_the_volume() {
        assert_eq!(
            words("mount.avidfs avidfs:files /mnt -sn -t fuse.avidfs -o rw,code=4+2"),
            "mount -s -ofsname=avidfs:files,volume=files -orw,code=4+2 -- /mnt"
        );
        assert_eq!(words("mount.avidfs files /mnt"), "mount -ofsname=files,volume=files -- /mnt");
        for unnamed in ["none", "avidfs", "avidfs:"] {
            assert_eq!(
                words(&format!("mount.avidfs {unnamed} /mnt")),
                format!("mount -ofsname={unnamed} -- /mnt")
            );
        }
        let refusal = wish("mount.avidfs /home/me/files /mnt").unwrap_err();
        assert!(refusal.contains("write avidfs:files"), "{refusal}");
    }

    #[test]
    fn a_remount_changes_what_is_there() {
        let wanted = ["rw", "nosuid", "remount", "ro"].map(str::to_owned).to_vec();
        assert_eq!(wish("mount.avidfs files /mnt -o rw,nosuid -o remount,ro"), Ok(Wish::Remount(wanted)));
    }

    #[test]
    fn flags_of_umount_may_stand_together() {
        let helper =
            UmountHelper::try_parse_from(["umount.avidfs", "/mnt", "-nrv", "-t", "fuse.avidfs"]).unwrap();
        assert!(helper.read_only && helper.no_mtab && !helper.lazy && !helper.force);
        let words: Vec<_> =
            helper.without_us().get_args().map(|word| word.to_str().unwrap().to_owned()).collect();
        assert_eq!(words, ["-i", "-r", "-n", "--", "/mnt"]);
    }
}
