//! What was meant: options typed over the environment over a YAML file over defaults.
//! It reads no socket and no state folder; what a volume already is, mount.rs compares.

mod objects;

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use common::code::Code;
use common::hash::HashId;
use common::nearest::nearest;
use common::size::ByteSize;
use credentials::TlsFiles;

use crate::access::Access;
use crate::cli::{AccessArgs, MountArgs};
use crate::host::reason;
use crate::state;
use crate::transport::NodeAddress;
use crate::volume::{AccessTimes, check_snapshot_name};

pub use self::objects::{StoreConfig, ToldBy, named_peers, owner_key, put_config, store_config};

/// A wrong option, in one sentence that names it and where it came from.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{0}")]
pub struct ConfigError(pub String);

/// Everything a mount is told.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct MountConfig {
    /// Where the volume appears; absolute.
    pub mountpoint: PathBuf,
    /// The folder of this volume's metadata, cache, backlog and log; absolute.
    pub state: PathBuf,
    /// What the mount is called where mounts are listed; otherwise after the volume.
    pub fsname: Option<String>,
    /// The nodes, if they were named; otherwise those of the last mount, or at first nodes inside the daemon.
    pub peers: Option<Vec<NodeAddress>>,
    /// By what the nodes know us, and we know them.
    pub access: Access,
    /// What the volume is to be, or is expected to be.
    pub shape: Shape,
    /// Verified objects kept in memory, in bytes.
    pub cache_memory_bytes: u64,
    /// Verified objects kept below the state folder, in bytes.
    pub cache_disk_bytes: u64,
    /// The longest any request may take.
    pub io_timeout: Duration,
    /// Written bytes that may be on their way to the nodes.
    pub write_behind_bytes: u64,
    /// Dirty bytes older than this are sealed.
    pub dirty_interval: Duration,
    /// Where sealed data waits that no pool would take, if not in the state folder; absolute.
    pub backlog_dir: Option<PathBuf>,
    /// How much of it may wait, in bytes.
    pub backlog_bytes: u64,
    /// How long a change of names or attributes may wait until it is written to the pool.
    pub metadata_interval: Duration,
    /// Where Prometheus finds the metrics of this mount, if it is to.
    pub metrics: Option<SocketAddr>,
    /// Most bytes of files; none: what the pool has room for.
    pub capacity_bytes: Option<u64>,
    /// Whether other users may use the mount.
    pub allow_other: bool,
    /// Whether requests may come from the kernel in rings (FUSE over io_uring), where it can.
    pub io_uring: bool,
    /// Whether whoever has the volume mounted elsewhere is fenced.
    pub take_over: bool,
    /// Whether nothing may be changed through this mount.
    pub read_only: bool,
    /// The first entry of the journal that may be given up, if any.
    pub accept_loss: Option<u64>,
    /// The snapshot that is mounted instead of the volume; `state` is a folder of its own then.
    pub snapshot: Option<SnapshotOf>,
    /// Whether the program stays in the foreground.
    pub foreground: bool,
    /// Options for the kernel: nosuid, nodev, noexec, noatime, ...
    pub kernel_options: Vec<String>,
}

impl MountConfig {
    /// Which accesses are noted: as the last option that says so has it.
    pub fn access_times(&self) -> AccessTimes {
        let named = |option: &String| match option.as_str() {
            "relatime" | "atime" | "diratime" => Some(AccessTimes::Relative),
            "nodiratime" => Some(AccessTimes::RelativeOfFiles),
            "strictatime" => Some(AccessTimes::Strict),
            "noatime" => Some(AccessTimes::Never),
            _ => None,
        };
        self.kernel_options.iter().rev().find_map(named).unwrap_or_default()
    }
}

/// A snapshot to mount.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SnapshotOf {
    /// Its name.
    pub name: String,
    /// The state folder of its volume; absolute.
    pub state: PathBuf,
}

/// What is written once when a volume is made. Absent is the default then, and whatever the volume has later.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Shape {
    /// Its name in the pool.
    pub name: Option<String>,
    /// Its code.
    pub code: Option<Code>,
    /// The hash of its FPCCs.
    pub hash: Option<HashId>,
    /// The most bytes in one object.
    pub object_size: Option<u32>,
}

/// Name of a volume if none is given.
pub const DEFAULT_NAME: &str = "default";
/// Code of a volume if none is given.
pub const DEFAULT_CODE: &str = "3+2";
/// Most bytes in an object of a volume if nothing is given.
pub const DEFAULT_OBJECT_SIZE: u32 = 4 << 20;

/// What the surroundings give besides the options; an argument, so that tests own it.
pub struct Surroundings<'a> {
    /// An environment variable.
    pub env: &'a dyn Fn(&str) -> Option<String>,
    /// The folder relative paths begin from.
    pub current_dir: PathBuf,
    /// Whether root asks.
    pub root: bool,
}

/// Work out what was meant.
pub fn mount_config(args: &MountArgs, surroundings: &Surroundings<'_>) -> Result<MountConfig, ConfigError> {
    let options = OptionList::parse(&args.options, args.sloppy)?;
    let typed = vec![from_arguments(args), options.values];
    let values = Layers::below(typed, args.config.clone(), surroundings)?;
    assemble(args, &values, options.kernel, surroundings)
}

/// The same for a command that asks nodes and mounts nothing.
pub fn access(args: &AccessArgs, surroundings: &Surroundings<'_>) -> Result<Access, ConfigError> {
    let values = Layers::below(vec![typed(access_arguments(args))], None, surroundings)?;
    assemble_access(&values, surroundings)
}

fn assemble_access(values: &Layers, surroundings: &Surroundings<'_>) -> Result<Access, ConfigError> {
    let file = |name: &str| values.text(name).map(|path| surroundings.current_dir.join(path));
    let tls = TlsFiles::of(file("tls-cert"), file("tls-key"), file("tls-ca"));
    let tls = tls.map_err(|error| ConfigError(error.to_string()))?;
    Ok(Access { tls, token_file: file("token-file") })
}

fn assemble(
    args: &MountArgs,
    values: &Layers,
    kernel_options: Vec<String>,
    surroundings: &Surroundings<'_>,
) -> Result<MountConfig, ConfigError> {
    let absolute = |path: &str| surroundings.current_dir.join(path);
    let shape = Shape {
        name: values.parse("volume", volume_name)?,
        code: values.parse("code", from_str::<Code>)?,
        hash: values.parse("hash", from_str::<HashId>)?,
        object_size: values.parse("object-size", object_size)?,
    };
    let state = match values.text("state") {
        Some(path) => absolute(&path),
        None => default_state(shape.name.as_deref().unwrap_or(DEFAULT_NAME), surroundings)?,
    };
    let snapshot =
        values.parse("snapshot", snapshot_name)?.map(|name| SnapshotOf { name, state: state.clone() });
    let state = match &snapshot {
        Some(snapshot) => state::snapshot_folder(&state, &snapshot.name),
        None => state,
    };
    let backlog_dir = values.text("backlog-dir").map(|path| absolute(&path));
    let access = assemble_access(values, surroundings)?;
    Ok(MountConfig {
        mountpoint: surroundings.current_dir.join(&args.mountpoint),
        fsname: values.parse("fsname", fsname)?,
        peers: values.parse("peers", |text| peers(text, &access))?,
        access,
        shape,
        cache_memory_bytes: values.or("cache-memory", size, 128 << 20)?,
        cache_disk_bytes: values.or("cache-disk", size, 1 << 30)?,
        io_timeout: values.or("io-timeout", at_least_a_second, Duration::from_secs(30))?,
        write_behind_bytes: values.or("write-behind", size, 64 << 20)?,
        dirty_interval: values.or("dirty-interval", duration, Duration::from_secs(5))?,
        backlog_dir,
        backlog_bytes: values.or("backlog-size", size, 1 << 30)?,
        metadata_interval: values.or("metadata-interval", duration, Duration::from_secs(1))?,
        metrics: values.parse("metrics", from_str::<SocketAddr>)?,
        capacity_bytes: values.parse("capacity", size)?,
        allow_other: values.or("allow-other", yes_or_no, surroundings.root)?,
        io_uring: values.or("io-uring", yes_or_no, true)?,
        take_over: values.or("take-over", yes_or_no, false)?,
        read_only: snapshot.is_some() || values.or("read-only", yes_or_no, false)?,
        accept_loss: args.accept_loss,
        snapshot,
        foreground: values.or("foreground", yes_or_no, false)?,
        kernel_options,
        state,
    })
}

/// The options that may stand in a file, the environment or `-o`, with their names.
const NAMES: [&str; 27] = [
    "peers",
    "tls-cert",
    "tls-key",
    "tls-ca",
    "token-file",
    "code",
    "volume",
    "fsname",
    "state",
    "hash",
    "object-size",
    "cache-memory",
    "cache-disk",
    "io-timeout",
    "write-behind",
    "dirty-interval",
    "backlog-dir",
    "backlog-size",
    "metadata-interval",
    "metrics",
    "capacity",
    "allow-other",
    "io-uring",
    "take-over",
    "read-only",
    "snapshot",
    "foreground",
];

/// Where a value came from, as a person would name it.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Origin {
    Argument,
    OptionList,
    Environment,
    File(PathBuf),
}

/// A value and where it came from.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Value {
    text: String,
    origin: Origin,
}

type Values = BTreeMap<&'static str, Value>;

/// The layers, what wins first.
struct Layers(Vec<Values>);

impl Layers {
    /// Environment and file below what was typed.
    fn below(
        mut layers: Vec<Values>,
        file: Option<PathBuf>,
        surroundings: &Surroundings<'_>,
    ) -> Result<Layers, ConfigError> {
        layers.push(from_environment(surroundings.env));
        let file = file.or_else(|| (surroundings.env)("AVIDFS_CONFIG").map(PathBuf::from));
        if let Some(path) = file {
            layers.push(from_file(&surroundings.current_dir.join(path))?);
        }
        Ok(Layers(layers))
    }

    fn find(&self, name: &str) -> Option<&Value> {
        self.0.iter().find_map(|values| values.get(name))
    }

    fn text(&self, name: &str) -> Option<String> {
        self.find(name).map(|value| value.text.clone())
    }

    fn parse<T>(
        &self,
        name: &str,
        parse: impl FnOnce(&str) -> Result<T, String>,
    ) -> Result<Option<T>, ConfigError> {
        let Some(value) = self.find(name) else { return Ok(None) };
        parse(&value.text)
            .map(Some)
            .map_err(|reason| ConfigError(format!("{}: {reason}", Spelled(name, value))))
    }

    fn or<T>(
        &self,
        name: &str,
        parse: impl FnOnce(&str) -> Result<T, String>,
        default: T,
    ) -> Result<T, ConfigError> {
        Ok(self.parse(name, parse)?.unwrap_or(default))
    }
}

/// A value as it was given: `--code 3x2`, `AVIDFS_CODE=3x2`, `code: 3x2 in FILE`.
struct Spelled<'a>(&'a str, &'a Value);

impl fmt::Display for Spelled<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Spelled(name, Value { text, origin }) = self;
        match origin {
            Origin::Argument => write!(f, "--{name} {text}"),
            Origin::OptionList => write!(f, "-o {name}={text}"),
            Origin::Environment => write!(f, "{}={text}", variable(name)),
            Origin::File(path) => write!(f, "{name}: {text} in {}", path.display()),
        }
    }
}

fn variable(name: &str) -> String {
    format!("AVIDFS_{}", name.to_uppercase().replace('-', "_"))
}

fn known(name: &str) -> Option<&'static str> {
    NAMES.into_iter().find(|known| *known == name.replace('_', "-"))
}

fn from_arguments(args: &MountArgs) -> Values {
    let flag = |set: bool, text: &str| set.then(|| text.to_owned());
    let allow_other = flag(args.no_allow_other, "no").or_else(|| flag(args.allow_other, "yes"));
    let io_uring = flag(args.no_io_uring, "no").or_else(|| flag(args.io_uring, "yes"));
    let given = [
        ("peers", args.peers.clone()),
        ("code", args.code.clone()),
        ("volume", args.volume.clone()),
        ("fsname", args.fsname.clone()),
        ("state", args.state.clone()),
        ("hash", args.hash.clone()),
        ("object-size", args.object_size.clone()),
        ("cache-memory", args.cache_memory.clone()),
        ("cache-disk", args.cache_disk.clone()),
        ("io-timeout", args.io_timeout.clone()),
        ("write-behind", args.write_behind.clone()),
        ("dirty-interval", args.dirty_interval.clone()),
        ("backlog-dir", args.backlog_dir.clone()),
        ("metrics", args.metrics.clone()),
        ("backlog-size", args.backlog_size.clone()),
        ("metadata-interval", args.metadata_interval.clone()),
        ("capacity", args.capacity.clone()),
        ("allow-other", allow_other),
        ("io-uring", io_uring),
        ("take-over", flag(args.take_over, "yes")),
        ("read-only", flag(args.read_only, "yes")),
        ("snapshot", args.snapshot.clone()),
        ("foreground", flag(args.foreground, "yes")),
    ];
    typed(given.into_iter().chain(access_arguments(&args.access)))
}

fn access_arguments(args: &AccessArgs) -> [(&'static str, Option<String>); 4] {
    [
        ("tls-cert", args.tls_cert.clone()),
        ("tls-key", args.tls_key.clone()),
        ("tls-ca", args.tls_ca.clone()),
        ("token-file", args.token_file.clone()),
    ]
}

fn typed(given: impl IntoIterator<Item = (&'static str, Option<String>)>) -> Values {
    let given = given.into_iter().filter_map(|(name, text)| Some((name, text?)));
    given.map(|(name, text)| (name, Value { text, origin: Origin::Argument })).collect()
}

/// Only names that are options count: the environment also holds what other programs mean by `AVIDFS_`.
fn from_environment(env: &dyn Fn(&str) -> Option<String>) -> Values {
    let given = NAMES.into_iter().filter_map(|name| Some((name, env(&variable(name))?)));
    given.map(|(name, text)| (name, Value { text, origin: Origin::Environment })).collect()
}

fn from_file(path: &Path) -> Result<Values, ConfigError> {
    let text = std::fs::read_to_string(path)
        .map_err(|error| ConfigError(format!("{}: {}", path.display(), reason(&error))))?;
    from_yaml(&text, path)
}

fn from_yaml(text: &str, path: &Path) -> Result<Values, ConfigError> {
    let wrong = |reason: String| ConfigError(format!("{}: {reason}", path.display()));
    if text.trim().is_empty() {
        return Ok(Values::new());
    }
    let given: BTreeMap<String, yaml_serde::Value> =
        yaml_serde::from_str(text).map_err(|error| wrong(error.to_string()))?;
    let mut values = Values::new();
    for (key, value) in given {
        let name = known(&key).ok_or_else(|| wrong(unknown_name(&key)))?;
        let text =
            yaml_text(&value).ok_or_else(|| wrong(format!("{key} must be one value or a list of values")))?;
        values.insert(name, Value { text, origin: Origin::File(path.to_owned()) });
    }
    Ok(values)
}

fn yaml_text(value: &yaml_serde::Value) -> Option<String> {
    use yaml_serde::Value;
    match value {
        Value::Bool(true) => Some("yes".to_owned()),
        Value::Bool(false) => Some("no".to_owned()),
        Value::Number(number) => Some(number.to_string()),
        Value::String(text) => Some(text.clone()),
        Value::Sequence(items) => {
            let texts: Option<Vec<String>> = items.iter().map(yaml_text).collect();
            Some(texts?.join(","))
        }
        Value::Null | Value::Mapping(_) | Value::Tagged(_) => None,
    }
}

fn unknown_name(name: &str) -> String {
    match nearest(name, &NAMES) {
        Some(nearest) => format!("there is no option {name}: did you mean {nearest}?"),
        None => format!("there is no option {name}: the options are {}", NAMES.join(", ")),
    }
}

/// A list as mount(8) hands it on: some of it ours, some the kernel's, some nobody's.
struct OptionList {
    values: Values,
    kernel: Vec<String>,
}

/// What the kernel and fusermount3 understand.
const KERNEL_OPTIONS: [&str; 17] = [
    "suid",
    "nosuid",
    "dev",
    "nodev",
    "exec",
    "noexec",
    "atime",
    "noatime",
    "relatime",
    "strictatime",
    "diratime",
    "nodiratime",
    "sync",
    "async",
    "dirsync",
    "symfollow",
    "nosymfollow",
];
/// What mount(8), fstab and systemd write for themselves, and what holds in any case.
const IGNORED_OPTIONS: [&str; 19] = [
    "defaults",
    "auto",
    "noauto",
    "user",
    "nouser",
    "users",
    "owner",
    "group",
    "nofail",
    "_netdev",
    "comment",
    "helper",
    "uhelper",
    "subtype",
    "default_permissions",
    "lazytime",
    "nolazytime",
    "silent",
    "loud",
];

impl OptionList {
    fn parse(lists: &[String], sloppy: bool) -> Result<OptionList, ConfigError> {
        let mut parsed = OptionList { values: Values::new(), kernel: Vec::new() };
        for list in lists {
            for option in joined_peers(list) {
                parsed.take(option, sloppy)?;
            }
        }
        Ok(parsed)
    }

    fn take(&mut self, option: String, sloppy: bool) -> Result<(), ConfigError> {
        let (name, value) = match option.split_once('=') {
            Some((name, value)) => (name, Some(value)),
            None => (option.as_str(), None),
        };
        let for_others = name.starts_with("x-") || name.starts_with("X-");
        if name.is_empty() || for_others || IGNORED_OPTIONS.contains(&name) {
            return Ok(());
        }
        if name == "rw" {
            // mount(8) writes it where nothing was said: it takes back an `ro` before it and means nothing else.
            self.values.remove("read-only");
            return Ok(());
        }
        if value.is_none() && KERNEL_OPTIONS.contains(&name) {
            self.kernel.push(option);
            return Ok(());
        }
        let (name, value) = match name {
            "ro" => ("read-only", Some("yes")),
            "no-allow-other" | "no_allow_other" => ("allow-other", Some("no")),
            "no-io-uring" | "no_io_uring" => ("io-uring", Some("no")),
            name => (name, value),
        };
        let Some(known) = known(name) else {
            if sloppy {
                return Ok(());
            }
            return Err(ConfigError(format!("-o {option}: {}", unknown_name(name))));
        };
        let text = match value {
            Some(value) => value.to_owned(),
            None if is_switch(known) => "yes".to_owned(),
            None => {
                return Err(ConfigError(format!("-o {option}: {name} needs a value, as in {name}=VALUE")));
            }
        };
        self.values.insert(known, Value { text, origin: Origin::OptionList });
        Ok(())
    }
}

fn is_switch(name: &str) -> bool {
    ["allow-other", "io-uring", "take-over", "read-only", "foreground"].contains(&name)
}

/// The options of a list. Commas separate options and peers alike: what begins as a URL after `peers=` is one more.
fn joined_peers(list: &str) -> Vec<String> {
    let mut options: Vec<String> = Vec::new();
    for piece in list.split(',') {
        match options.last_mut() {
            Some(last) if last.starts_with("peers=") && piece.contains(':') && !piece.contains('=') => {
                last.push(',');
                last.push_str(piece);
            }
            _ => options.push(piece.to_owned()),
        }
    }
    options
}

fn default_state(volume: &str, surroundings: &Surroundings<'_>) -> Result<PathBuf, ConfigError> {
    if surroundings.root {
        return Ok(Path::new("/var/lib/avidfs").join(volume));
    }
    let set = |name: &str| (surroundings.env)(name).filter(|value| value.starts_with('/'));
    let base = set("XDG_STATE_HOME")
        .map(PathBuf::from)
        .or_else(|| set("HOME").map(|home| Path::new(&home).join(".local/state")))
        .ok_or_else(|| {
            ConfigError("neither XDG_STATE_HOME nor HOME is set: say where with --state".to_owned())
        })?;
    Ok(base.join("avidfs").join(volume))
}

fn from_str<T: FromStr>(text: &str) -> Result<T, String>
where
    T::Err: fmt::Display,
{
    text.parse().map_err(|error: T::Err| error.to_string())
}

/// A list of nodes: `http://HOST:PORT`, `https://HOST:PORT`, or `HOST:PORT` for whichever of them is spoken.
pub fn peers(text: &str, access: &Access) -> Result<Vec<NodeAddress>, String> {
    let usual = if access.tls.is_some() { "https" } else { "http" };
    let mut addresses = Vec::new();
    for piece in text.split(',').map(str::trim).filter(|piece| !piece.is_empty()) {
        let address = peer(piece, usual)?;
        if addresses.contains(&address) {
            return Err(format!("{address} is named twice"));
        }
        addresses.push(address);
    }
    if addresses.is_empty() {
        return Err(format!("expected {usual}://HOST:PORT,{usual}://HOST:PORT,.."));
    }
    Ok(addresses)
}

fn peer(text: &str, usual: &str) -> Result<NodeAddress, String> {
    let expected = || format!("{text:?} is not a node: expected {usual}://HOST:PORT");
    let (scheme, authority) = text.split_once("://").unwrap_or((usual, text));
    if !["http", "https"].contains(&scheme) {
        return Err(expected());
    }
    let authority = authority.trim_end_matches('/');
    let (host, port) = authority.rsplit_once(':').ok_or_else(expected)?;
    let port: u16 = port.parse().map_err(|_| expected())?;
    let bracketed = host.starts_with('[') && host.ends_with(']');
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '.' || c == '-' || c == '_';
    if port == 0 || host.is_empty() || !(bracketed || host.chars().all(plain)) {
        return Err(expected());
    }
    Ok(NodeAddress(format!("{scheme}://{}:{port}", host.to_ascii_lowercase())))
}

/// A name that is safe as part of a path and of a line: 1 to 64 letters, digits, `.`, `_` and `-`, no dot in front.
fn volume_name(text: &str) -> Result<String, String> {
    let safe = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    if text.is_empty() || text.len() > 64 || text.starts_with('.') || !text.chars().all(safe) {
        return Err("a volume's name has 1 to 64 letters, digits, dots, dashes and underscores".to_owned());
    }
    Ok(text.to_owned())
}

/// Goes through fusermount3 and the lists of mount(8): no spaces, commas or backslashes.
fn fsname(text: &str) -> Result<String, String> {
    let safe = |c: char| c.is_ascii_graphic() && !matches!(c, ',' | '\\');
    if text.is_empty() || text.len() > 255 || !text.chars().all(safe) {
        return Err("the name of a mount has letters, digits and signs, but no comma".to_owned());
    }
    Ok(text.to_owned())
}

/// A fragment must fit one request with room to spare, also with m = 1; below 64 KiB the FPCC outweighs the bytes.
fn object_size(text: &str) -> Result<u32, String> {
    let bytes = size(text)?;
    if !(64 << 10..=16 << 20).contains(&bytes) || bytes % 4096 != 0 {
        return Err("an object has 64KiB to 16MiB, in steps of 4KiB".to_owned());
    }
    Ok(bytes as u32)
}

fn yes_or_no(text: &str) -> Result<bool, String> {
    match text {
        "yes" | "true" | "on" | "1" => Ok(true),
        "no" | "false" | "off" | "0" => Ok(false),
        _ => Err("expected yes or no".to_owned()),
    }
}

fn size(text: &str) -> Result<u64, String> {
    text.parse().map(ByteSize::bytes).map_err(|_| "expected a size such as 64KiB, 128MiB or 1GiB".to_owned())
}

/// `500ms`, `30s`, `2m`, `1h`; at most a day, so that no sum of times overflows.
fn duration(text: &str) -> Result<Duration, String> {
    let expected = || "expected a time such as 500ms, 30s or 2m".to_owned();
    let digits = text.find(|c: char| !c.is_ascii_digit()).ok_or_else(expected)?;
    let (number, unit) = text.split_at(digits);
    let number: u64 = number.parse().map_err(|_| expected())?;
    let unit_ms: u64 = match unit.trim() {
        "ms" => 1,
        "s" => 1000,
        "m" | "min" => 60_000,
        "h" => 3_600_000,
        _ => return Err(expected()),
    };
    let ms = number.checked_mul(unit_ms).filter(|ms| (1..=86_400_000).contains(ms));
    ms.map(Duration::from_millis).ok_or_else(|| "a time is at least 1ms and at most 24h".to_owned())
}

fn snapshot_name(text: &str) -> Result<String, String> {
    check_snapshot_name(text).map_err(|error| error.to_string())?;
    Ok(text.to_owned())
}

fn at_least_a_second(text: &str) -> Result<Duration, String> {
    let limit = duration(text)?;
    if limit < Duration::from_secs(1) {
        return Err("at least 1s: that long it takes to know that a node does not answer".to_owned());
    }
    Ok(limit)
}

#[cfg(test)]
mod tests {
    use avidfs_tests::fuzz::fuzz;
    use clap::Parser;

    use super::*;
    use crate::cli::{Cli, Command};

    fn args(line: &str) -> MountArgs {
        let words = ["avidfs", "mount", "/mnt"].into_iter().chain(line.split_whitespace());
        match Cli::try_parse_from(words).unwrap().command {
            Command::Mount(args) => *args,
            _ => panic!("not a mount"),
        }
    }

    fn meant(line: &str, env: &[(&str, &str)]) -> Result<MountConfig, ConfigError> {
        let env =
            |name: &str| env.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned());
        mount_config(&args(line), &Surroundings { env: &env, current_dir: "/here".into(), root: true })
    }

    fn refused(line: &str, env: &[(&str, &str)]) -> String {
        meant(line, env).unwrap_err().to_string()
    }

    fn file(text: &str) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        file
    }

    #[test]
    fn without_options_the_defaults_hold() {
        let config = meant("", &[]).unwrap();
        assert_eq!(config.state, Path::new("/var/lib/avidfs/default"));
        assert_eq!(config.backlog_dir, None);
        assert_eq!((config.cache_memory_bytes, config.cache_disk_bytes), (128 << 20, 1 << 30));
        assert_eq!((config.io_timeout.as_secs(), config.dirty_interval.as_secs()), (30, 5));
        assert_eq!((config.shape, config.peers), (Shape::default(), None));
        assert!(config.allow_other && config.io_uring && !config.read_only && !config.foreground);
    }

    #[test]
    fn arguments_win_over_the_option_list_over_the_environment_over_the_file() {
        let file = file("code: 10+4\nhash: sha256\ncache-disk: 5GiB\ncache_memory: 1048576\n");
        let line = format!("--config {} --code 4+2 -o code=6+3,cache-disk=2GiB", file.path().display());
        let config =
            meant(&line, &[("AVIDFS_CODE", "2+2"), ("AVIDFS_CACHE_DISK", "3GiB"), ("AVIDFS_HASH", "blake3")]);
        let config = config.unwrap();
        assert_eq!(config.shape.code, Some("4+2".parse().unwrap()));
        assert_eq!(config.cache_disk_bytes, 2 << 30);
        assert_eq!(config.shape.hash, Some(HashId::Blake3));
        assert_eq!(config.cache_memory_bytes, 1 << 20);
    }

    #[test]
    fn an_unknown_key_of_the_file_is_refused_with_the_nearest_one() {
        let file = file("cache-dsk: 1GiB\n");
        let sentence = refused(&format!("--config {}", file.path().display()), &[]);
        assert!(sentence.ends_with("there is no option cache-dsk: did you mean cache-disk?"), "{sentence}");
        let sentence = refused("-o stat=/x", &[]);
        assert_eq!(sentence, "-o stat=/x: there is no option stat: did you mean state?");
    }

    #[test]
    fn a_file_that_is_missing_or_no_yaml_is_refused() {
        assert_eq!(refused("--config none.yaml", &[]), "/here/none.yaml: no such file or directory");
        for text in ["- a\n- b\n", "code: [", "code: {m: 3}\n"] {
            let file = file(text);
            assert!(meant(&format!("--config {}", file.path().display()), &[]).is_err(), "{text:?}");
        }
        let empty = file("# nothing yet\n");
        assert!(meant(&format!("--config {}", empty.path().display()), &[]).is_ok());
    }

    #[test]
    fn a_wrong_value_is_named_with_the_place_it_came_from() {
        assert!(refused("--code 3x2", &[]).starts_with("--code 3x2: "));
        assert!(refused("-o code=3x2", &[]).starts_with("-o code=3x2: "));
        assert!(refused("", &[("AVIDFS_IO_TIMEOUT", "5")]).starts_with("AVIDFS_IO_TIMEOUT=5: "));
        let file = file("cache-disk: lots\n");
        let sentence = refused(&format!("--config {}", file.path().display()), &[]);
        assert!(sentence.starts_with("cache-disk: lots in /"), "{sentence}");
    }

    #[test]
    fn an_option_list_as_mount_8_writes_it_is_taken() {
        let list = "-o rw,_netdev,x-systemd.automount,nosuid,noatime,peers=http://a:1,http://b:2,c:3,code=2+1,allow_other";
        let config = meant(list, &[]).unwrap();
        assert_eq!(config.kernel_options, ["nosuid", "noatime"]);
        let peers: Vec<String> = config.peers.unwrap().into_iter().map(|peer| peer.0).collect();
        assert_eq!(peers, ["http://a:1", "http://b:2", "http://c:3"]);
        assert_eq!(config.shape.code, Some("2+1".parse().unwrap()));
        assert!(meant("-o ro", &[]).unwrap().read_only);
        for (list, read_only) in [("ro,rw", false), ("rw,ro", true), ("rw", false)] {
            assert_eq!(meant(&format!("-o {list}"), &[]).unwrap().read_only, read_only, "{list}");
        }
        assert!(meant("-o rw", &[("AVIDFS_READ_ONLY", "yes")]).unwrap().read_only);
        assert!(meant("-s -o nodelalloc,fsname=avidfs:files", &[]).is_ok());
        assert!(refused("-o nodelalloc", &[]).contains("no option nodelalloc"));
        assert!(refused("--fsname a,b", &[]).starts_with("--fsname a,b: "));
        assert_eq!(refused("-o code", &[]), "-o code: code needs a value, as in code=VALUE");
    }

    #[test]
    fn others_are_let_in_or_kept_out_as_was_typed_last() {
        assert!(!meant("--no-allow-other", &[]).unwrap().allow_other);
        assert!(!meant("-o no-allow-other", &[]).unwrap().allow_other);
        assert!(meant("--no-allow-other --allow-other", &[]).unwrap().allow_other);
        assert!(!meant("", &[("AVIDFS_ALLOW_OTHER", "no")]).unwrap().allow_other);
    }

    #[test]
    fn io_uring_is_used_unless_somebody_says_no() {
        assert!(!meant("--no-io-uring", &[]).unwrap().io_uring);
        assert!(!meant("-o no_io_uring", &[]).unwrap().io_uring);
        let by_env = [("AVIDFS_IO_URING", "no")];
        assert!(!meant("", &by_env).unwrap().io_uring);
        assert!(meant("--no-io-uring --io-uring", &by_env).unwrap().io_uring);
    }

    #[test]
    fn the_state_folder_of_a_user_follows_the_xdg_rules() {
        let state = |env: &[(&str, &str)]| {
            let env = |name: &str| {
                env.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned())
            };
            default_state("v", &Surroundings { env: &env, current_dir: "/".into(), root: false })
        };
        assert_eq!(state(&[("HOME", "/home/u")]).unwrap(), Path::new("/home/u/.local/state/avidfs/v"));
        assert_eq!(
            state(&[("HOME", "/home/u"), ("XDG_STATE_HOME", "/s")]).unwrap(),
            Path::new("/s/avidfs/v")
        );
        assert!(state(&[]).is_err());
    }

    #[test]
    fn peers_are_urls_named_once() {
        let plain = Access::default();
        let file = || Some("file".into());
        let secured = Access { tls: TlsFiles::of(file(), file(), file()).unwrap(), ..Access::default() };
        let peers = |text: &str| peers(text, &plain);
        assert_eq!(peers("A.example:80/").unwrap(), peers("http://a.example:80").unwrap());
        assert_eq!(peers("http://[::1]:7001").unwrap()[0].0, "http://[::1]:7001");
        assert_eq!(peers("https://a:1").unwrap()[0].0, "https://a:1");
        assert_eq!(super::peers("a:1", &secured).unwrap()[0].0, "https://a:1");
        for wrong in
            ["", ",", "a", "http://a", "ftp://a:1", "a:0", "a:65536", "http://a:1/x", "a:1,http://A:1", ":1"]
        {
            assert!(peers(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn certificate_key_and_ca_are_given_together_from_wherever() {
        let env = [("AVIDFS_TLS_KEY", "key.pem"), ("AVIDFS_TLS_CA", "/etc/ca.pem")];
        let tls = meant("--tls-cert cert.pem", &env).unwrap().access.tls.unwrap();
        assert_eq!((tls.cert, tls.key), ("/here/cert.pem".into(), "/here/key.pem".into()));
        assert_eq!(tls.ca, Path::new("/etc/ca.pem"));
        assert!(refused("", &env).ends_with("--tls-cert is missing"));
        let token = meant("-o token-file=/etc/token", &[]).unwrap().access.token_file;
        assert_eq!(token, Some("/etc/token".into()));
    }

    #[test]
    fn sizes_and_times_carry_their_units() {
        assert_eq!(size("0"), Ok(0));
        assert_eq!(size("64KiB"), Ok(64 << 10));
        assert_eq!(duration("500ms"), Ok(Duration::from_millis(500)));
        for wrong in ["", "MiB", "1.5GiB", "-1", "99999999TiB", "1X"] {
            assert!(size(wrong).is_err(), "{wrong:?}");
        }
        for wrong in ["", "30", "s", "25h", "0s", "-1s"] {
            assert!(duration(wrong).is_err(), "{wrong:?}");
        }
        assert!(
            object_size("64KiB").is_ok() && object_size("17MiB").is_err() && object_size("65537").is_err()
        );
    }

    #[test]
    fn a_volume_name_is_safe_in_a_path() {
        assert!(volume_name("home-2.old_x").is_ok());
        for wrong in ["", ".", "..", ".x", "a/b", "a b", "a\n", "\u{e4}"] {
            assert!(volume_name(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn whatever_the_file_it_is_refused_in_one_sentence_or_means_something() {
        let valid = [
            "peers: [http://a:1, b:2]\ncode: 3+2\nhash: sha256\nobject-size: 1MiB\nallow-other: no\n",
            "# a comment\ncache_memory: 1048576\n\"io-timeout\": '5s'\nstate: /var/lib/x\ndirty-interval: 1h\n",
            "tls-cert: &c c.pem\ntls-key: *c\ntls-ca: *c\nvolume: |-\n  files\n",
        ];
        let valid = valid.map(|text| text.as_bytes().to_vec());
        let (none, typed) = (|_: &str| None, args(""));
        let parse = |bytes: &[u8]| {
            let values = from_yaml(std::str::from_utf8(bytes).ok()?, Path::new("file"))
                .map_err(|error| assert!(!error.to_string().is_empty()))
                .ok()?;
            let surroundings = Surroundings { env: &none, current_dir: "/here".into(), root: true };
            Some(assemble(&typed, &Layers(vec![values]), Vec::new(), &surroundings))
        };
        fuzz("mount-config", &valid, yaml_memory, parse, |meant, _| {
            if let Ok(meant) = meant {
                assert!(meant.state.is_absolute() && meant.io_timeout >= Duration::from_secs(1));
            }
        });
    }

    /// Short aliases stand for long values, and aliases for aliases. The library gives up when it has read a hundred times
    /// as many of them as there are in the file, which is one's own: so it is much, and no more for each byte.
    fn yaml_memory(length: usize) -> usize {
        (256 << 10) + (64 << 10) * length
    }

    #[test]
    fn whatever_the_list_it_is_refused_or_is_options() {
        let valid = [
            "rw,_netdev,nosuid,noatime,peers=http://a:1,http://b:2,c:3,code=2+1,allow_other",
            "ro,x-systemd.automount,fsname=avidfs:files,,comment=x=y",
        ];
        let valid = valid.map(|text| text.as_bytes().to_vec());
        let parse =
            |bytes: &[u8]| OptionList::parse(&[std::str::from_utf8(bytes).ok()?.to_owned()], false).ok();
        fuzz(
            "mount-options",
            &valid,
            |length| 128 * length + 4096,
            parse,
            |list, _| {
                assert!(list.kernel.iter().all(|option| KERNEL_OPTIONS.contains(&option.as_str())));
            },
        );
    }
}
