//! What was typed. Nothing here is checked or filled in: config.rs says what was meant.

mod objects;

use std::path::PathBuf;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Args, Parser, Subcommand};
use common::wire::NodeId;
use credentials::pki::USUAL_DAYS;

use self::objects::OBJECTS_HELP;
pub use self::objects::{
    DeleteArgs, GetArgs, ListArgs, MembersArgs, OwnerArgs, PutArgs, ReadArgs, StoreArgs,
};

/// A file system whose files live as erasure-coded fragments on several nodes.
#[derive(Parser, Debug)]
#[command(name = "avidfs", version, max_term_width = 100, disable_help_subcommand = true)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Subcommand, Debug)]
pub enum Command {
    /// Mount a volume; make it first if there is none yet
    #[command(after_long_help = MOUNT_HELP)]
    Mount(Box<MountArgs>),
    /// Store everything, unmount, and return when the mount daemon has ended
    Umount(UmountArgs),
    /// Say how a mounted volume, or a pool of nodes, is doing
    Status(StatusArgs),
    /// Print a mount's metrics as Prometheus reads them
    Metrics(MetricsArgs),
    /// Measure in about a minute what a mount does for programs
    Bench(BenchArgs),
    /// Delete fragments of objects that nobody refers to, as a crash may leave them
    Gc(GcArgs),
    /// Bring what is stored to the nodes named at the last mount: after one was replaced, added or left out
    Rebalance(RebalanceArgs),
    /// Check names, files, objects and fragments against each other, and repair them
    #[command(after_long_help = FSCK_HELP)]
    Fsck(FsckArgs),
    /// List what nodes were caught at: fragments that contradict what they had acknowledged
    #[command(after_long_help = BLAME_HELP)]
    Blame(BlameArgs),
    /// Keep states of a volume, and bring back what was in them
    #[command(subcommand)]
    Snapshot(SnapshotCommand),
    /// List the states a file was in, over the snapshots and now
    Versions(VersionsArgs),
    /// Make the state folder of a volume anew from what the pool holds
    Recover(RecoverArgs),
    /// The volume's key, with which alone it can be written
    #[command(subcommand)]
    Key(KeyCommand),
    /// A small CA, and certificates by which nodes and clients know each other
    #[command(subcommand)]
    Pki(PkiCommand),
    /// Say where a file's fragments are, and how many more losses it survives
    Info(InfoArgs),
    /// Store a file under a key of the object store
    #[command(after_long_help = OBJECTS_HELP)]
    Put(Box<PutArgs>),
    /// Read an object into a file
    #[command(after_long_help = OBJECTS_HELP)]
    Get(Box<GetArgs>),
    /// Delete an object
    #[command(after_long_help = OBJECTS_HELP)]
    Delete(Box<DeleteArgs>),
    /// List the keys of an owner's objects
    #[command(after_long_help = OBJECTS_HELP)]
    List(Box<ListArgs>),
    /// Ask all nodes of a pool who they are, and write the list that each is started with
    #[command(after_long_help = OBJECTS_HELP)]
    Members(MembersArgs),
}

const FSCK_HELP: &str = "\
Exit codes: 0 all is well, 1 problems were found and all are repaired, 4 problems are left, 8 the check could not be
made, 2 the command line is wrong. A node that does not answer is no problem as long as everything can be read.
A mounted volume is checked by its mount daemon, by its mount point; one that is not mounted by its state folder.";

const BLAME_HELP: &str = "\
A node that gave wrong bytes is asked to look at the fragment and sign for it. One that signs that all is well has lied;
one that gives no such answer is unexplained; both get nothing new, while others can take it, until --clear. One that
finds that its own copy has rotted is rotten: the fragment is rebuilt, and the node trusted as before.";

const MOUNT_HELP: &str = "\
Every option may also stand in a YAML file (--config; the key is the option's name without dashes in front), in the
environment (AVIDFS_ and the name in capitals, such as AVIDFS_CACHE_DISK), or in the list of -o (-o code=4+2).
What is typed wins over the environment, which wins over the file.
Sizes are written 64KiB, 128MiB, 1GiB; times 500ms, 30s, 2m.";

/// By what nodes know us, and we know them.
#[derive(Args, Clone, Debug, Default)]
pub struct AccessArgs {
    /// The certificate to show to nodes, PEM
    #[arg(long, value_name = "FILE")]
    pub tls_cert: Option<String>,
    /// The key of the certificate, PEM
    #[arg(long, value_name = "FILE")]
    pub tls_key: Option<String>,
    /// The certificate of the CA that nodes' certificates must be signed by, PEM; then only TLS is spoken
    #[arg(long, value_name = "FILE")]
    pub tls_ca: Option<String>,
    /// The file with the pool's token
    #[arg(long, value_name = "FILE")]
    pub token_file: Option<String>,
}

/// `avidfs mount`.
#[derive(Args, Debug, Default)]
pub struct MountArgs {
    /// An empty directory
    pub mountpoint: PathBuf,
    /// The nodes, separated by commas [default: those of the last mount; at first, nodes inside the mount daemon]
    #[arg(long, value_name = "URL,URL,..")]
    pub peers: Option<String>,
    /// Data and parity fragments of each object, when the volume is made [default: 3+2]
    #[arg(long, value_name = "M+P")]
    pub code: Option<String>,
    /// The volume's name in the pool [default: default]
    #[arg(long, value_name = "NAME")]
    pub volume: Option<String>,
    /// What df and /proc/mounts call the mount [default: avidfs: and the volume's name]
    #[arg(long, value_name = "NAME")]
    pub fsname: Option<String>,
    /// The folder that keeps names and attributes [default: /var/lib/avidfs/NAME, or below $XDG_STATE_HOME]
    #[arg(long, value_name = "DIR")]
    pub state: Option<String>,
    /// blake3 or sha256, when the volume is made [default: blake3]
    #[arg(long, value_name = "HASH")]
    pub hash: Option<String>,
    /// The most bytes in one object, when the volume is made [default: 4MiB]
    #[arg(long, value_name = "SIZE")]
    pub object_size: Option<String>,
    /// Verified objects kept in memory [default: 128MiB]
    #[arg(long, value_name = "SIZE")]
    pub cache_memory: Option<String>,
    /// Verified objects kept below the state folder [default: 1GiB]
    #[arg(long, value_name = "SIZE")]
    pub cache_disk: Option<String>,
    /// The longest any request may take [default: 30s]
    #[arg(long, value_name = "TIME")]
    pub io_timeout: Option<String>,
    /// Written bytes that may be on their way to the nodes [default: 64MiB]
    #[arg(long, value_name = "SIZE")]
    pub write_behind: Option<String>,
    /// Bytes written longer ago than this are sent to the nodes [default: 5s]
    #[arg(long, value_name = "TIME")]
    pub dirty_interval: Option<String>,
    /// Where bytes wait that no pool would take [default: backlog in the state folder]
    #[arg(long, value_name = "DIR")]
    pub backlog_dir: Option<String>,
    /// How many of them may wait [default: 1GiB]
    #[arg(long, value_name = "SIZE")]
    pub backlog_size: Option<String>,
    /// Serve metrics for Prometheus at http://ADDRESS/metrics
    #[arg(long, value_name = "ADDRESS")]
    pub metrics: Option<String>,
    /// Changes of names and attributes longer ago than this are written to the pool [default: 1s]
    #[arg(long, value_name = "TIME")]
    pub metadata_interval: Option<String>,
    /// The most bytes of files, as a quota of the whole volume [default: what the pool has room for]
    #[arg(long, value_name = "SIZE")]
    pub capacity: Option<String>,
    /// By what nodes know us.
    #[command(flatten)]
    pub access: AccessArgs,
    /// Let other users use the mount [default for root]
    #[arg(long, overrides_with = "no_allow_other")]
    pub allow_other: bool,
    /// Keep other users out [default for everyone but root]
    #[arg(long)]
    pub no_allow_other: bool,
    /// Take requests from the kernel through io_uring where it can, Linux 6.14 or later [default]
    #[arg(long, overrides_with = "no_io_uring")]
    pub io_uring: bool,
    /// Take them from /dev/fuse
    #[arg(long)]
    pub no_io_uring: bool,
    /// Fence whoever has the volume mounted elsewhere, and write it from here
    #[arg(long)]
    pub take_over: bool,
    /// Go on without entry SEQ of the journal and what came after, where a mount was refused because of it
    #[arg(long, value_name = "SEQ")]
    pub accept_loss: Option<u64>,
    /// Mount read-only
    #[arg(long)]
    pub read_only: bool,
    /// Mount this snapshot of the volume, read-only; the volume itself may be mounted meanwhile
    #[arg(long, value_name = "NAME", conflicts_with = "take_over")]
    pub snapshot: Option<String>,
    /// Stay in the foreground and log there
    #[arg(short = 'f', long)]
    pub foreground: bool,
    /// Options as mount(8) takes them: ro, nosuid, nodev, noexec, noatime, and any of the above as NAME=VALUE
    #[arg(short = 'o', value_name = "OPTIONS")]
    pub options: Vec<String>,
    /// Ignore what stands in the list of -o and nobody knows
    #[arg(short = 's', hide = true)]
    pub sloppy: bool,
    /// A YAML file with any of these options
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// This process is the daemon: standard output is the pipe on which it reports.
    #[arg(long, hide = true)]
    pub daemon: bool,
}

/// `avidfs gc`.
#[derive(Args, Debug)]
pub struct GcArgs {
    /// Where the volume is mounted
    pub mountpoint: PathBuf,
    /// Only say what would be deleted
    #[arg(long)]
    pub dry_run: bool,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// `avidfs rebalance`.
#[derive(Args, Debug)]
pub struct RebalanceArgs {
    /// Where the volume is mounted
    pub mountpoint: PathBuf,
    /// Only say what would be moved
    #[arg(long)]
    pub dry_run: bool,
    /// Return when everything is on its way, not when it has arrived
    #[arg(long, conflicts_with = "dry_run")]
    pub no_wait: bool,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// `avidfs blame`.
#[derive(Args, Debug)]
pub struct BlameArgs {
    /// Where the volume is mounted
    #[arg(required_unless_present = "state", conflicts_with = "state")]
    pub mountpoint: Option<PathBuf>,
    /// The state folder of a volume that is not mounted
    #[arg(long, value_name = "DIR")]
    pub state: Option<PathBuf>,
    /// Put aside what there is against a node, and trust it again
    #[arg(long, value_name = "IDENTITY")]
    pub clear: Option<NodeId>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// `avidfs fsck`.
#[derive(Args, Debug)]
pub struct FsckArgs {
    /// Where the volume is mounted
    #[arg(required_unless_present = "state", conflicts_with = "state")]
    pub mountpoint: Option<PathBuf>,
    /// The state folder of a volume that is not mounted
    #[arg(long, value_name = "DIR")]
    pub state: Option<PathBuf>,
    /// The nodes of a volume that is not mounted [default: those of the last mount]
    #[arg(long, value_name = "URL,URL,..", conflicts_with = "mountpoint")]
    pub peers: Option<String>,
    /// By what nodes know us.
    #[command(flatten)]
    pub access: AccessArgs,
    /// Repair what can be repaired
    #[arg(long)]
    pub repair: bool,
    /// Read and verify every fragment
    #[arg(long)]
    pub deep: bool,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// `avidfs snapshot`.
#[derive(Subcommand, Debug)]
pub enum SnapshotCommand {
    /// Keep the state the volume has now; copies nothing
    Create {
        /// A new name
        name: String,
        /// Where the volume is mounted
        mountpoint: PathBuf,
    },
    /// List the snapshots, and what each one costs
    List {
        /// Where the volume is mounted
        mountpoint: PathBuf,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Give a snapshot up, and the space that it alone needs
    Delete {
        /// Its name
        name: String,
        /// Where the volume is mounted
        mountpoint: PathBuf,
    },
    /// Bring back a file, a folder, or (given the mount point) everything, as it was in a snapshot
    ///
    /// What is at PATH now is replaced all at once, and gone; copies no bytes.
    Restore {
        /// The snapshot's name
        name: String,
        /// Where it was, on the mount
        path: PathBuf,
        /// Put it there instead, where nothing is yet
        #[arg(long, value_name = "PATH")]
        to: Option<PathBuf>,
    },
}

/// `avidfs versions`.
#[derive(Args, Debug)]
pub struct VersionsArgs {
    /// A path on an avidfs mount; what it names may be gone by now
    pub path: PathBuf,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// `avidfs recover`.
#[derive(Args, Debug)]
pub struct RecoverArgs {
    /// The nodes, separated by commas
    #[arg(long, value_name = "URL,URL,..")]
    pub peers: String,
    /// By what nodes know us.
    #[command(flatten)]
    pub access: AccessArgs,
    /// A new or empty folder to make the state in
    #[arg(long, value_name = "DIR")]
    pub state: PathBuf,
    /// The volume's name [default: the only one the nodes know]
    #[arg(long, value_name = "NAME")]
    pub volume: Option<String>,
    /// The volume's key, as `avidfs key export` wrote it; without it the volume can only be read
    #[arg(long, value_name = "FILE")]
    pub key: Option<PathBuf>,
    /// The public key the volume must be signed with, as `avidfs status` shows it
    #[arg(long, value_name = "HEX", conflicts_with = "key")]
    pub fingerprint: Option<String>,
    /// Go on without entry SEQ of the journal and what came after, where recovery was refused because of it
    #[arg(long, value_name = "SEQ")]
    pub accept_loss: Option<u64>,
}

/// `avidfs key`.
#[derive(Subcommand, Debug)]
pub enum KeyCommand {
    /// Write the key to standard output: keep it where the state folder is not
    Export {
        /// The volume's state folder
        #[arg(long, value_name = "DIR")]
        state: PathBuf,
    },
}

/// `avidfs pki`.
#[derive(Subcommand, Debug)]
pub enum PkiCommand {
    /// Make a CA in a folder, with certificates for nodes and for one client
    Init {
        /// The folder, which nobody else may enter
        folder: PathBuf,
        /// Names or addresses by which one node is reached; once for each node [default: localhost,127.0.0.1,::1]
        #[arg(long = "host", value_name = "NAME,NAME,..")]
        hosts: Vec<String>,
        /// How long everything is valid
        #[arg(long, default_value_t = USUAL_DAYS, value_parser = clap::value_parser!(u32).range(1..=36_500))]
        days: u32,
    },
    /// Make a certificate for one more node
    Node {
        /// The folder of the CA
        folder: PathBuf,
        /// Names or addresses by which it is reached; the files are called after the first
        #[arg(value_name = "NAME,NAME,..")]
        names: String,
        /// The node's identity, as its log and `avidfs status` show it: the certificate stands for no other one
        #[arg(long, value_name = "ID")]
        id: Option<String>,
        /// How long it is valid
        #[arg(long, default_value_t = USUAL_DAYS, value_parser = clap::value_parser!(u32).range(1..=36_500))]
        days: u32,
    },
    /// Make a certificate for one more client
    Client {
        /// The folder of the CA
        folder: PathBuf,
        /// What people call it
        name: String,
        /// How long it is valid
        #[arg(long, default_value_t = USUAL_DAYS, value_parser = clap::value_parser!(u32).range(1..=36_500))]
        days: u32,
    },
}

/// `avidfs umount`.
#[derive(Args, Debug)]
pub struct UmountArgs {
    /// Where the volume is mounted
    pub mountpoint: PathBuf,
}

/// `avidfs status`.
#[derive(Args, Debug)]
pub struct StatusArgs {
    /// Where the volume is mounted [default: every avidfs mount here]
    #[arg(conflicts_with = "peers")]
    pub mountpoint: Option<PathBuf>,
    /// Ask these nodes instead of a mount
    #[arg(long, value_name = "URL,URL,..")]
    pub peers: Option<String>,
    /// By what nodes know us.
    #[command(flatten)]
    pub access: AccessArgs,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// `avidfs metrics`.
#[derive(Args, Debug)]
pub struct MetricsArgs {
    /// Where the volume is mounted
    pub mountpoint: PathBuf,
}

/// `avidfs bench`.
#[derive(Args, Debug)]
pub struct BenchArgs {
    /// A folder of the mount; others than avidfs do as well
    pub folder: PathBuf,
    /// Seconds for each figure
    #[arg(long, default_value_t = 6, value_parser = clap::value_parser!(u64).range(1..=600))]
    pub seconds: u64,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// `avidfs info`.
#[derive(Args, Debug)]
pub struct InfoArgs {
    /// A file on an avidfs mount
    pub path: PathBuf,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// What clap has to say about a command line, in one sentence; `None` if it is help or version, to be printed as is.
pub fn usage_sentence(error: &clap::Error) -> Option<String> {
    let context = |kind| match error.get(kind) {
        Some(ContextValue::String(text)) => Some(text.clone()),
        Some(ContextValue::Strings(texts)) => Some(texts.join(" or ")),
        _ => None,
    };
    let unknown = |what: &str, got: Option<String>, nearest: Option<String>| {
        let got = got.unwrap_or_default();
        match nearest {
            Some(nearest) => format!("there is no {what} {got}: did you mean {nearest}?"),
            None => format!("there is no {what} {got}: see avidfs --help"),
        }
    };
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => None,
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand | ErrorKind::MissingSubcommand => {
            Some("nothing to do: see avidfs --help".to_owned())
        }
        ErrorKind::UnknownArgument => {
            Some(unknown("option", context(ContextKind::InvalidArg), context(ContextKind::SuggestedArg)))
        }
        ErrorKind::InvalidSubcommand => Some(unknown(
            "command",
            context(ContextKind::InvalidSubcommand),
            context(ContextKind::SuggestedSubcommand),
        )),
        ErrorKind::MissingRequiredArgument => {
            Some(format!("{} is missing", context(ContextKind::InvalidArg).unwrap_or_default()))
        }
        _ => Some(first_line(&error.to_string())),
    }
}

fn first_line(text: &str) -> String {
    text.lines().next().unwrap_or_default().trim_start_matches("error: ").to_owned()
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    fn sentence(line: &str) -> Option<String> {
        let error = Cli::try_parse_from(line.split_whitespace()).unwrap_err();
        usage_sentence(&error)
    }

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_wrong_command_line_gets_one_sentence_with_the_nearest_name() {
        assert_eq!(
            sentence("avidfs mount /mnt --pers x").unwrap(),
            "there is no option --pers: did you mean --peers?"
        );
        assert_eq!(
            sentence("avidfs monut /mnt").unwrap(),
            "there is no command monut: did you mean umount or mount?"
        );
        assert_eq!(sentence("avidfs umount").unwrap(), "<MOUNTPOINT> is missing");
        assert!(sentence("avidfs").unwrap().starts_with("nothing to do"));
        assert!(sentence("avidfs status /mnt --peers x").unwrap().contains("cannot be used with"));
        assert_eq!(sentence("avidfs --version"), None);
    }

    #[test]
    fn short_and_long_forms_are_taken() {
        let line =
            "avidfs mount /mnt -f -o ro,code=4+2 -o nosuid --cache-disk 2GiB --allow-other --no-allow-other";
        let Command::Mount(args) = Cli::try_parse_from(line.split_whitespace()).unwrap().command else {
            panic!("not a mount")
        };
        assert_eq!(args.options, ["ro,code=4+2", "nosuid"]);
        assert_eq!(args.cache_disk.as_deref(), Some("2GiB"));
        assert!(args.foreground && args.no_allow_other);
    }
}
