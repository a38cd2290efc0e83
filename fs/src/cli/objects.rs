//! What was typed for the object store.

use std::path::PathBuf;

use clap::Args;

use super::AccessArgs;
use crate::objects::MAX_VERSION;

/// What every command of the object store has in its long help.
pub(super) const OBJECTS_HELP: &str = "\
Exit codes: 0 done, 1 it could not be done, 2 the command line is wrong, 3 there is no object of
this key or version.
--peers, --io-timeout, --object-size and the options of TLS and token may also stand in the
environment (AVIDFS_PEERS, ..) or in the YAML file that AVIDFS_CONFIG names.
Sizes are written 64KiB, 4MiB; times 500ms, 30s, 2m.";

/// Which pool, and how it is reached.
#[derive(Args, Clone, Debug, Default)]
pub struct StoreArgs {
    /// Nodes of the pool, separated by commas: they are asked which nodes there are
    #[arg(long, value_name = "URL,URL,..")]
    pub peers: Option<String>,
    /// The list of the pool's nodes, as `avidfs members` writes it, so that nobody need be asked
    #[arg(long, value_name = "FILE", env = "AVIDFS_MEMBERS")]
    pub members: Option<PathBuf>,
    /// The longest one part or one question may take [default: 30s]
    #[arg(long, value_name = "TIME")]
    pub io_timeout: Option<String>,
    /// By what nodes know us.
    #[command(flatten)]
    pub access: AccessArgs,
}

/// Whose objects are written.
#[derive(Args, Clone, Debug, Default)]
pub struct OwnerArgs {
    /// The owner's secret key; made by the first put [default: $XDG_DATA_HOME/avidfs/owner.key, or
    /// ~/.local/share/avidfs/owner.key]
    #[arg(long, value_name = "FILE", env = "AVIDFS_OWNER_KEY")]
    pub owner_key: Option<PathBuf>,
}

/// Whose objects are read.
#[derive(Args, Clone, Debug, Default)]
pub struct ReadArgs {
    /// By the owner's key.
    #[command(flatten)]
    pub key: OwnerArgs,
    /// Somebody else's objects: the owner, as `avidfs put --json` names it
    #[arg(long, value_name = "HEX")]
    pub owner: Option<String>,
}

/// `avidfs put`.
#[derive(Args, Debug)]
pub struct PutArgs {
    /// What to store; - is standard input
    #[arg(value_name = "FILE|-")]
    pub file: PathBuf,
    /// Under which key: 1 to 900 bytes
    #[arg(long, value_name = "KEY")]
    pub key: String,
    /// Which pool.
    #[command(flatten)]
    pub store: StoreArgs,
    /// Whose.
    #[command(flatten)]
    pub owner: OwnerArgs,
    /// The version, which must be higher than all before [default: the next one]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=MAX_VERSION))]
    pub version: Option<u64>,
    /// Bytes in each part of a longer object [default: 4MiB]
    #[arg(long, value_name = "SIZE")]
    pub object_size: Option<String>,
    /// Parts sent at once, and held in memory
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u16).range(1..=64))]
    pub parallel: u16,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    /// Print nothing, and show no progress
    #[arg(long)]
    pub quiet: bool,
}

/// `avidfs get`.
#[derive(Args, Debug)]
pub struct GetArgs {
    /// Which object
    #[arg(long, value_name = "KEY")]
    pub key: String,
    /// Where to; the file appears when all of it is there. - is standard output
    #[arg(long, value_name = "FILE|-")]
    pub out: PathBuf,
    /// Which pool.
    #[command(flatten)]
    pub store: StoreArgs,
    /// Whose.
    #[command(flatten)]
    pub owner: ReadArgs,
    /// Fail unless this is the newest version: older ones are not kept
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=MAX_VERSION))]
    pub version: Option<u64>,
    /// Parts read at once, and held in memory
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u16).range(1..=64))]
    pub parallel: u16,
    /// Print JSON; on standard error with --out -
    #[arg(long)]
    pub json: bool,
    /// Print nothing, and show no progress
    #[arg(long)]
    pub quiet: bool,
}

/// `avidfs delete`.
#[derive(Args, Debug)]
pub struct DeleteArgs {
    /// Which object
    #[arg(long, value_name = "KEY")]
    pub key: String,
    /// Which pool.
    #[command(flatten)]
    pub store: StoreArgs,
    /// Whose.
    #[command(flatten)]
    pub owner: OwnerArgs,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    /// Print nothing
    #[arg(long)]
    pub quiet: bool,
}

/// `avidfs list`.
#[derive(Args, Debug)]
pub struct ListArgs {
    /// Only keys that begin with this
    #[arg(long, value_name = "TEXT", default_value = "")]
    pub prefix: String,
    /// Which pool.
    #[command(flatten)]
    pub store: StoreArgs,
    /// Whose.
    #[command(flatten)]
    pub owner: ReadArgs,
    /// Also how long each object is and when it was put, which takes a request to read each one's manifest
    #[arg(long)]
    pub long: bool,
    /// Deleted keys too
    #[arg(long)]
    pub deleted: bool,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// `avidfs members`.
#[derive(Args, Debug)]
pub struct MembersArgs {
    /// All nodes of the pool, separated by commas, by the URLs that everyone reaches them at
    #[arg(long, value_name = "URL,URL,..")]
    pub peers: Option<String>,
    /// Data and parity fragments of each object, as 3+2
    #[arg(long, value_name = "M+P")]
    pub code: String,
    /// By what nodes know us.
    #[command(flatten)]
    pub access: AccessArgs,
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::super::{Cli, Command, usage_sentence};

    fn parse(line: &str) -> Command {
        Cli::try_parse_from(line.split_whitespace()).unwrap().command
    }

    fn sentence(line: &str) -> String {
        usage_sentence(&Cli::try_parse_from(line.split_whitespace()).unwrap_err()).unwrap()
    }

    #[test]
    fn a_put_takes_a_file_or_standard_input_and_its_options() {
        let Command::Put(args) = parse("avidfs put - --key a/b --peers h:1") else { panic!("not a put") };
        assert_eq!((args.file.to_str(), args.key.as_str()), (Some("-"), "a/b"));
        assert_eq!((args.parallel, args.version, args.object_size), (2, None, None));
        let line = "avidfs put F --key k --members M --owner-key O --version 7 --object-size 1MiB --parallel 3 \
                    --io-timeout 5s --json --quiet --token-file T";
        let Command::Put(args) = parse(line) else { panic!("not a put") };
        assert_eq!((args.parallel, args.version, args.object_size.as_deref()), (3, Some(7), Some("1MiB")));
        assert_eq!(args.store.io_timeout.as_deref(), Some("5s"));
        assert_eq!(args.store.access.token_file.as_deref(), Some("T"));
        assert_eq!(args.owner.owner_key.as_deref().and_then(|path| path.to_str()), Some("O"));
        assert!(args.json && args.quiet);
    }

    #[test]
    fn the_other_commands_take_theirs() {
        let Command::Get(args) = parse("avidfs get --key k --out - --owner 00 --version 2") else {
            panic!("not a get")
        };
        assert_eq!((args.parallel, args.version, args.owner.owner.as_deref()), (2, Some(2), Some("00")));
        let Command::List(args) = parse("avidfs list --prefix p/ --long --deleted --json") else {
            panic!("not a list")
        };
        assert!(args.prefix == "p/" && args.long && args.deleted && args.json);
        assert!(matches!(parse("avidfs delete --key k"), Command::Delete(_)));
        let Command::Members(args) = parse("avidfs members --peers a:1,b:1 --code 3+2") else {
            panic!("not members")
        };
        assert_eq!((args.peers.as_deref(), args.code.as_str()), (Some("a:1,b:1"), "3+2"));
    }

    #[test]
    fn what_is_missing_or_out_of_range_is_named() {
        assert_eq!(sentence("avidfs put F"), "--key <KEY> is missing");
        assert_eq!(sentence("avidfs get --key k"), "--out <FILE|-> is missing");
        assert_eq!(sentence("avidfs members --peers a:1"), "--code <M+P> is missing");
        for wrong in
            ["--version 0", "--version 4611686018427387905", "--parallel 0", "--parallel 65", "--version -1"]
        {
            let said = sentence(&format!("avidfs put F --key k {wrong}"));
            assert!(said.contains(wrong.split(' ').nth(1).unwrap()), "{said}");
        }
    }
}
