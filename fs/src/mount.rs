//! Opening a volume, or making one: everything that is checked before anything is changed.
//! It asks nodes and folders and says no; what it lets pass, opening.rs carries out.

use std::collections::{HashMap, HashSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use common::code::Code;
use common::hash::HashId;
use common::size::ByteSize;
use common::wire::{NodeId, NodeInfo, OwnerId, VolumeDescriptor, VolumeEntry, VolumeId, WIRE_VERSION};
use futures_util::future::join_all;

use crate::config::{DEFAULT_CODE, DEFAULT_NAME, DEFAULT_OBJECT_SIZE, Shape};
use crate::host::{self, MountEntry, reason};
use crate::inode::Time;
use crate::metadata::{Configuration, VolumeSettings};
use crate::state::Refusal;
use crate::transport::{FragmentTransport, NodeAddress, TransportError};
use crate::umount::daemon_of;

/// A place to mount on.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Place {
    path: PathBuf,
    /// Whether a dead mount of ours lies on it.
    dead: bool,
}

/// Look at a mount point without changing anything.
///
/// # Errors
/// It does not exist, is no directory, is not empty, has an avidfs mount already, or the dead mount of another program.
pub fn look_at(path: &Path) -> Result<Place, Refusal> {
    let shown = path.display();
    let refused =
        |error: &io::Error| Refusal(format!("the mount point {shown} cannot be used: {}", reason(error)));
    let mount = host::mount_at(path).map_err(|error| refused(&error))?;
    if let Some(mount) = mount.filter(MountEntry::is_ours) {
        return look_at_ours(mount);
    }
    match path.metadata() {
        Ok(metadata) if !metadata.is_dir() => {
            Err(Refusal(format!("the mount point {shown} is not a directory")))
        }
        Ok(_) => {
            check_empty(path)?;
            let path = path.canonicalize().map_err(|error| refused(&error))?;
            Ok(Place { path, dead: false })
        }
        Err(error) if host::says_dead(&error) => {
            Err(Refusal(format!("there is a dead mount of another program at {shown}: unmount it first")))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            Err(Refusal(format!("the mount point {shown} does not exist: make it with mkdir")))
        }
        Err(error) => Err(refused(&error)),
    }
}

/// A mount of ours is dead when its daemon has ended and the kernel says so. The daemon is asked first: one that
/// hangs would let us hang in the kernel; and not by stat, which the kernel answers for the dead from memory.
fn look_at_ours(mount: MountEntry) -> Result<Place, Refusal> {
    let gone = daemon_of(&mount)?.is_none();
    let dead = || host::free_bytes(&mount.mountpoint).is_err_and(|error| host::says_dead(&error));
    if gone && dead() {
        return Ok(Place { path: mount.mountpoint, dead: true });
    }
    Err(Refusal(format!("there is an avidfs mount at {} already", mount.mountpoint.display())))
}

fn check_empty(path: &Path) -> Result<(), Refusal> {
    let shown = path.display();
    let mut entries = path
        .read_dir()
        .map_err(|error| Refusal(format!("the mount point {shown} cannot be used: {}", reason(&error))))?;
    match entries.next() {
        None => Ok(()),
        Some(_) => Err(Refusal(format!("the mount point {shown} is not empty: give an empty directory"))),
    }
}

impl Place {
    /// Its path, resolved.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Take a dead mount of ours away, and look again.
    pub fn clear(self) -> Result<Place, Refusal> {
        if !self.dead {
            return Ok(self);
        }
        host::unmount(&self.path, true).map_err(|error| {
            Refusal(format!(
                "the dead mount at {} cannot be detached: {}",
                self.path.display(),
                reason(&error)
            ))
        })?;
        look_at(&self.path)
    }
}

/// Whether this machine and this user can mount at all.
pub fn check_fuse(allow_other: bool) -> Result<(), Refusal> {
    if !Path::new("/dev/fuse").exists() {
        return Err(Refusal("/dev/fuse is missing: load the kernel module fuse".to_owned()));
    }
    if host::is_root() {
        return Ok(());
    }
    if !host::is_on_path("fusermount3") {
        return Err(Refusal("fusermount3 is missing: install the package fuse3".to_owned()));
    }
    let fuse_conf = std::fs::read_to_string("/etc/fuse.conf").unwrap_or_default();
    if allow_other && !lets_others_in(&fuse_conf) {
        return Err(Refusal(
            "other users may be let in only by root, or with user_allow_other in /etc/fuse.conf".to_owned(),
        ));
    }
    Ok(())
}

fn lets_others_in(fuse_conf: &str) -> bool {
    fuse_conf.lines().any(|line| line.trim() == "user_allow_other")
}

/// Neither may lie in the other: the daemon would wait for itself.
pub fn check_apart(place: &Path, state: &Path) -> Result<(), Refusal> {
    if host::resolve(state).starts_with(place) {
        return Err(Refusal(format!(
            "the state folder {} lies in the mount point {}: give another one with --state",
            state.display(),
            place.display()
        )));
    }
    Ok(())
}

/// What was asked of peers and who answered what.
#[derive(Debug, Default)]
pub struct Survey {
    /// Those who answered as nodes do.
    pub answered: Vec<Hello>,
    /// Those who did not answer, and why.
    pub silent: Vec<(NodeAddress, String)>,
}

/// A node that answered.
#[derive(Clone, Debug)]
pub struct Hello {
    /// Where.
    pub address: NodeAddress,
    /// Who, and how it is.
    pub info: NodeInfo,
    /// The volumes it was told of.
    pub volumes: Vec<VolumeEntry>,
}

/// Ask every address at once. Who says nothing sensible of itself or of its volumes, speaks another protocol, or says that it
/// is a node that answers elsewhere counts as silent: what one node kept for somebody else, or makes up, is not to end the
/// mounts of everyone. Where two say that they are one node, the one `known` to be there is; otherwise the first one.
pub async fn survey(
    transport: &Arc<dyn FragmentTransport>,
    addresses: &[NodeAddress],
    known: &[(NodeAddress, NodeId)],
    limit: Duration,
) -> Survey {
    let asked = join_all(addresses.iter().map(|address| hello(transport, address, limit))).await;
    let mut survey = Survey::default();
    for (address, answer) in addresses.iter().zip(asked) {
        match answer {
            Ok(hello) => survey.answered.push(hello),
            Err(why) => survey.silent.push((address.clone(), why)),
        }
    }
    survey.without_twins(known)
}

/// What one says, or why it cannot be counted on now.
async fn hello(
    transport: &Arc<dyn FragmentTransport>,
    address: &NodeAddress,
    limit: Duration,
) -> Result<Hello, String> {
    let info = transport.info(address, limit).await.map_err(|error| match error {
        TransportError::Garbage(reason) => format!("it answers, but is not a shardd: {reason}"),
        error => error.to_string(),
    })?;
    let info = info.value;
    if info.wire != WIRE_VERSION {
        let (version, address) = (info.wire, address.clone());
        return Err(format!(
            "{address} speaks version {version} of the protocol, this avidfs speaks version {WIRE_VERSION}"
        ));
    }
    let volumes = transport.volumes(address, limit).await.map_err(|error| error.to_string())?;
    Ok(Hello { address: address.clone(), info, volumes: volumes.value })
}

impl Survey {
    fn without_twins(self, known: &[(NodeAddress, NodeId)]) -> Survey {
        let Survey { answered: all, mut silent } = self;
        let is_known = |hello: &&Hello| {
            known.iter().any(|(address, node)| (address, node) == (&hello.address, &hello.info.node))
        };
        let mut places: HashMap<NodeId, NodeAddress> = HashMap::new();
        for hello in all.iter().filter(is_known).chain(&all) {
            places.entry(hello.info.node).or_insert_with(|| hello.address.clone());
        }
        let mut answered = Vec::new();
        for hello in all {
            match &places[&hello.info.node] {
                place if *place == hello.address => answered.push(hello),
                place => {
                    let why = format!("{place} and {} are the same node", hello.address);
                    silent.push((hello.address, why));
                }
            }
        }
        Survey { answered, silent }
    }

    /// The newest epoch of a volume that more of them have seen than may lie: epochs are not many enough to skip to any
    /// that one node tells of.
    pub fn newest_epoch(&self, volume: VolumeId, code: Code) -> u32 {
        let of_node = |hello: &Hello| {
            let known = hello.volumes.iter().filter(|known| known.descriptor.volume == volume);
            known.map(|known| known.epoch).max()
        };
        let mut epochs: Vec<u32> = self.answered.iter().filter_map(of_node).collect();
        epochs.sort_unstable_by(|a, b| b.cmp(a));
        epochs.get(code.faults()).copied().unwrap_or_default()
    }

    /// Those who did not answer, and why, for a sentence.
    pub fn silent_names(&self) -> String {
        let names: Vec<String> =
            self.silent.iter().map(|(address, why)| format!("{address} ({why})")).collect();
        names.join(", ")
    }
}

/// What a new volume is to be.
///
/// # Errors
/// Not everyone answered, there are fewer nodes than the code has fragments, or the pool has a volume of that name.
pub fn volume_to_make(
    volume: VolumeId,
    shape: &Shape,
    survey: &Survey,
    root: (u32, u32),
    now: Time,
) -> Result<VolumeSettings, Refusal> {
    if !survey.silent.is_empty() {
        return Err(Refusal(format!(
            "a volume is made only when every node answers, and these do not: {}",
            survey.silent_names()
        )));
    }
    let settings = settings_from(volume, shape, root, now);
    let (name, code, nodes) = (&settings.name, settings.code, survey.answered.len());
    if nodes < code.n() {
        return Err(Refusal(format!("code {code} needs {} nodes, and {nodes} are given", code.n())));
    }
    let holder =
        survey.answered.iter().find(|hello| hello.volumes.iter().any(|known| known.descriptor.name == *name));
    if let Some(holder) = holder {
        return Err(Refusal(format!(
            "the pool holds a volume {name} already ({} knows it), and its state folder is elsewhere: \
             give that folder with --state, or another name with --volume",
            holder.address
        )));
    }
    Ok(settings)
}

/// What a new volume is to be, as far as no node is asked.
pub fn settings_from(volume: VolumeId, shape: &Shape, root: (u32, u32), now: Time) -> VolumeSettings {
    VolumeSettings {
        volume,
        name: shape.name.clone().unwrap_or_else(|| DEFAULT_NAME.to_owned()),
        code: shape.code.unwrap_or_else(default_code),
        hash: shape.hash.unwrap_or(HashId::Blake3),
        object_size: shape.object_size.unwrap_or(DEFAULT_OBJECT_SIZE),
        root,
        created: now,
    }
}

/// The code of a volume if none is given.
pub fn default_code() -> Code {
    DEFAULT_CODE.parse().expect("the default is a code")
}

/// What nodes are told of a volume, whose owner this is.
pub fn descriptor(settings: &VolumeSettings, owner: Option<OwnerId>) -> VolumeDescriptor {
    VolumeDescriptor {
        volume: settings.volume,
        name: settings.name.clone(),
        code: settings.code.to_string(),
        hash: settings.hash.to_string(),
        object_size: u64::from(settings.object_size),
        owner,
    }
}

/// Whether what was asked for is what the volume is.
pub fn check_shape(shape: &Shape, settings: &VolumeSettings) -> Result<(), Refusal> {
    let name = &settings.name;
    let differs = |what: &str, has: String, asked: String| {
        Err(Refusal(format!(
            "volume {name} has {what} {has}, not {asked}: that is fixed when a volume is made"
        )))
    };
    let bytes = |size: u32| ByteSize(u64::from(size)).to_string();
    match shape {
        Shape { name: Some(asked), .. } if asked != name => Err(Refusal(format!(
            "the state folder belongs to volume {name}, not {asked}: give the other one with --state"
        ))),
        Shape { code: Some(asked), .. } if *asked != settings.code => {
            differs("code", settings.code.to_string(), asked.to_string())
        }
        Shape { hash: Some(asked), .. } if *asked != settings.hash => {
            differs("hash", settings.hash.to_string(), asked.to_string())
        }
        Shape { object_size: Some(asked), .. } if *asked != settings.object_size => {
            differs("object size", bytes(settings.object_size), bytes(*asked))
        }
        _ => Ok(()),
    }
}

/// The nodes a mount goes on with.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Nodes {
    /// Identities over which new objects are placed.
    pub current: Vec<NodeId>,
    /// Where every node answers that may hold something of the volume, if that is known.
    pub known: Vec<(NodeAddress, NodeId)>,
    /// Addresses at which nobody answered who is known by name.
    pub unknown: Vec<NodeAddress>,
    /// Where those were whose address another one has now.
    pub gone: Vec<(NodeAddress, NodeId)>,
    /// What the person who mounts should read.
    pub warnings: Vec<String>,
}

/// Which nodes to go on with: those that were given (`named`), or those remembered; where each one is, whether or not
/// it moved; and whether they are enough. Of `remembered` the first is the last one that was at its address.
///
/// # Errors
/// Too few of the volume's nodes answer to read anything, or new ones are too few to place objects on.
pub fn nodes_to_use(
    survey: &Survey,
    named: bool,
    settings: &VolumeSettings,
    configuration: &Configuration,
    remembered: &[(NodeAddress, NodeId)],
) -> Result<Nodes, Refusal> {
    let mut known: Vec<(NodeAddress, NodeId)> =
        survey.answered.iter().map(|hello| (hello.address.clone(), hello.info.node)).collect();
    let mut unknown = Vec::new();
    for (address, _) in &survey.silent {
        let identity = remembered.iter().find(|(at, _)| at == address).map(|(_, node)| *node);
        match identity.filter(|node| !known.iter().any(|(_, other)| other == node)) {
            Some(node) => known.push((address.clone(), node)),
            None => unknown.push(address.clone()),
        }
    }
    let given: Vec<NodeId> = known.iter().map(|(_, node)| *node).collect();
    for (address, node) in remembered {
        let taken = known.iter().any(|(at, other)| at == address || other == node);
        if !taken {
            known.push((address.clone(), *node));
        }
    }
    let current =
        if named { placed_on(&given, unknown.len(), configuration) } else { configuration.nodes.clone() };
    check_enough(survey, settings, configuration)?;
    if current.len() < settings.code.n() {
        return Err(Refusal(format!(
            "code {} needs {} nodes, and the peers given are {}",
            settings.code,
            settings.code.n(),
            current.len()
        )));
    }
    let is_known = |node: &NodeId| known.iter().any(|(_, other)| other == node);
    let mut gone: Vec<(NodeAddress, NodeId)> = Vec::new();
    for (address, node) in remembered {
        if !is_known(node) && !gone.iter().any(|(_, other)| other == node) {
            gone.push((address.clone(), *node));
        }
    }
    // Each of the unknown may be one of those whose place is not known.
    let absent = configuration.nodes.iter().filter(|node| !is_known(node)).skip(unknown.len());
    let absent: Vec<String> = absent.map(|node| absence(*node, &gone)).collect();
    let warnings = warnings(survey, settings, &current, absent);
    Ok(Nodes { current, known, unknown, gone, warnings })
}

fn absence(node: NodeId, gone: &[(NodeAddress, NodeId)]) -> String {
    let place = match gone.iter().find(|(_, other)| *other == node) {
        Some((address, _)) => format!("another one answers at {address}, where it was"),
        None => "where it was is not known".to_owned(),
    };
    format!(
        "no answer from node {node}, and {place}: a fragment of what is placed on it is missing until it is started with \
         the data it had"
    )
}

/// Nodes that were added or left out make a new configuration. While somebody who may be anybody does not answer, or
/// fewer are named than an object needs, what is known already stays: naming some of the old nodes changes nothing.
fn placed_on(given: &[NodeId], unknown: usize, configuration: &Configuration) -> Vec<NodeId> {
    let old: HashSet<&NodeId> = configuration.nodes.iter().collect();
    let brings_new = given.iter().any(|node| !old.contains(node));
    let leaves_out = given.len() < old.len() && unknown == 0;
    if brings_new || leaves_out { given.to_vec() } else { configuration.nodes.clone() }
}

fn check_enough(
    survey: &Survey,
    settings: &VolumeSettings,
    configuration: &Configuration,
) -> Result<(), Refusal> {
    let up = survey.answered.iter().filter(|hello| configuration.nodes.contains(&hello.info.node)).count();
    let (m, name) = (settings.code.m(), &settings.name);
    if up >= m {
        return Ok(());
    }
    let nodes = configuration.nodes.len();
    if survey.silent.is_empty() {
        return Err(Refusal(format!(
            "{up} of the {nodes} nodes of volume {name} are among the peers, {m} are needed: these are not its nodes"
        )));
    }
    Err(Refusal(format!(
        "{up} of the {nodes} nodes of volume {name} answer, {m} are needed: no answer from {}",
        survey.silent_names()
    )))
}

fn warnings(
    survey: &Survey,
    settings: &VolumeSettings,
    current: &[NodeId],
    absent: Vec<String>,
) -> Vec<String> {
    let mut warnings = absent;
    if !survey.silent.is_empty() {
        warnings.push(format!("no answer from {}", survey.silent_names()));
    }
    if warnings.is_empty() {
        return warnings;
    }
    let code = settings.code;
    let up = survey.answered.iter().filter(|hello| current.contains(&hello.info.node)).count();
    if !can_store(code, up) {
        warnings.push(format!(
            "{up} of {} nodes are too few to store anything: writing will fail until more answer",
            current.len()
        ));
    }
    if current.len() - up.min(current.len()) > code.p() {
        warnings.push("some files cannot be read until more nodes answer".to_owned());
    }
    warnings
}

/// Whether an object can be *stored* on so many nodes, some of which then keep more than one fragment: with any s of
/// them lost, m fragments must be left. (With p = 1 and fewer than n nodes, s is 0.)
pub fn can_store(code: Code, nodes: usize) -> bool {
    if nodes == 0 {
        return false;
    }
    let n = code.n();
    let nodes = nodes.min(n);
    let spared = if code.p() == 1 && nodes < n { 0 } else { code.margin().min(nodes) };
    let lost = spared * (n / nodes) + spared.min(n % nodes);
    n - lost >= code.m()
}

#[cfg(test)]
mod tests {
    use axum::Router;
    use axum::routing::get;
    use common::wire::{BOOT_HEADER, BootId, MAX_BODY, NODE_HEADER};
    use shardd::{Limits, Store, StoreOptions};

    use super::*;
    use crate::transport::in_process::InProcessTransport;

    fn address(k: u8) -> NodeAddress {
        NodeAddress(format!("http://127.0.0.1:{}", 7000 + u16::from(k)))
    }

    fn node(k: u8) -> NodeId {
        NodeId([k; 16])
    }

    fn hello(k: u8) -> Hello {
        let info = NodeInfo {
            wire: WIRE_VERSION,
            node: node(k),
            boot: BootId([0; 8]),
            zone: None,
            capacity_bytes: 0,
            used_bytes: 0,
            available_bytes: 0,
            fragments: 0,
            version: String::new(),
            key: None,
        };
        Hello { address: address(k), info, volumes: Vec::new() }
    }

    fn survey_of(up: &[u8], down: &[u8]) -> Survey {
        Survey {
            answered: up.iter().map(|k| hello(*k)).collect(),
            silent: down.iter().map(|k| (address(*k), "connection refused".to_owned())).collect(),
        }
    }

    const VOLUME: VolumeId = VolumeId([7; 16]);

    fn settings() -> VolumeSettings {
        settings_from(VOLUME, &Shape::default(), (0, 0), Time::default())
    }

    fn five() -> (Configuration, Vec<(NodeAddress, NodeId)>) {
        let configuration = Configuration { number: 1, nodes: (1..=5).map(node).collect() };
        (configuration, (1..=5).map(|k| (address(k), node(k))).collect())
    }

    fn make(shape: Shape, survey: &Survey) -> String {
        volume_to_make(VOLUME, &shape, survey, (0, 0), Time::default()).unwrap_err().0
    }

    /// Five nodes, of which the last has this list of volumes, if any is given.
    fn nodes(folder: &Path, volumes: Option<String>) -> (Arc<dyn FragmentTransport>, Vec<NodeAddress>) {
        let mut routers: Vec<Router> = (0..5)
            .map(|k| Store::open(StoreOptions::new(folder.join(format!("{k}")))).unwrap())
            .map(|store| shardd::app(store, Limits::default()))
            .collect();
        if let Some(volumes) = volumes {
            let honest = routers.pop().unwrap();
            let said = [(NODE_HEADER, "0".repeat(32)), (BOOT_HEADER, "0".repeat(16))];
            let lying = Router::new().route("/volumes", get(async move || (said, volumes)));
            routers.push(lying.fallback_service(honest));
        }
        (Arc::new(InProcessTransport::new(routers)), (0..5).map(InProcessTransport::address).collect())
    }

    #[test]
    fn one_node_alone_does_not_say_which_epoch_is_the_newest() {
        let newest = |epochs: &[u32], code: &str| {
            let mut survey = survey_of(&[1, 2, 3, 4, 5][..epochs.len()], &[]);
            for (hello, epoch) in survey.answered.iter_mut().zip(epochs) {
                hello.volumes =
                    vec![VolumeEntry { descriptor: descriptor(&settings(), None), epoch: *epoch }];
            }
            survey.newest_epoch(VOLUME, code.parse().unwrap())
        };
        assert_eq!(newest(&[3, 3, 2, 8_388_606, 3], "3+2"), 3);
        assert_eq!(newest(&[3, 2, u32::MAX], "3+2"), 3);
        assert_eq!(newest(&[3, 2, 1], "2+1"), 3, "where no liar is allowed for");
        assert_eq!(newest(&[3], "3+2"), 0);
    }

    /// A node could be made to keep more than it can list in one answer, and then no volume could be mounted any more
    /// that it had anything to do with.
    #[tokio::test]
    async fn a_node_whose_volumes_make_no_sense_is_as_one_that_does_not_answer() {
        const LIMIT: Duration = Duration::from_secs(5);
        let folder = tempfile::tempdir().unwrap();
        let (transport, addresses) = nodes(folder.path(), None);
        let all = survey(&transport, &addresses, &[], LIMIT).await;
        assert_eq!((all.answered.len(), all.silent.len()), (5, 0));
        let nodes_of: Vec<NodeId> = all.answered.iter().map(|hello| hello.info.node).collect();
        let remembered: Vec<_> = addresses.iter().cloned().zip(nodes_of.iter().copied()).collect();
        let configuration = Configuration { number: 1, nodes: nodes_of };
        drop((all, transport));

        for garbage in ["[]".to_owned(), r#"{"volumes":[{"name":"a"}]}"#.to_owned(), " ".repeat(MAX_BODY + 1)]
        {
            let (transport, addresses) = nodes(folder.path(), Some(garbage));
            let four = survey(&transport, &addresses, &[], LIMIT).await;
            assert_eq!((four.answered.len(), &four.silent[0].0), (4, &addresses[4]));
            let used = nodes_to_use(&four, false, &settings(), &configuration, &remembered).unwrap();
            assert_eq!((&used.current, &used.known), (&configuration.nodes, &remembered));
            let [warning] = &used.warnings[..] else { panic!("{:?}", used.warnings) };
            assert!(warning.starts_with("no answer from embedded:4 (not an answer of shardd: "), "{warning}");
            assert!(make(Shape::default(), &four).contains("embedded:4"), "a volume is made on all of them");
        }
    }

    #[tokio::test]
    async fn no_volume_is_made_on_what_is_no_node_at_all() {
        let strangers: Arc<dyn FragmentTransport> = Arc::new(InProcessTransport::new([Router::new()]));
        let found = survey(&strangers, &[InProcessTransport::address(0)], &[], Duration::from_secs(5)).await;
        let sentence = make(Shape::default(), &found);
        assert!(sentence.contains("embedded:0 (it answers, but is not a shardd: "), "{sentence}");
    }

    /// One node that said it is another one kept everybody from mounting.
    #[test]
    fn of_two_that_say_they_are_one_node_the_known_one_counts() {
        let (configuration, remembered) = five();
        let mut said = survey_of(&[1, 2, 3, 4, 5], &[]);
        said.answered[1].info.node = node(4);
        let four = said.without_twins(&remembered);
        let answered: Vec<NodeId> = four.answered.iter().map(|hello| hello.info.node).collect();
        assert_eq!(answered, [1, 3, 4, 5].map(node));
        let why = "http://127.0.0.1:7004 and http://127.0.0.1:7002 are the same node".to_owned();
        assert_eq!(four.silent, [(address(2), why)]);
        let used = nodes_to_use(&four, false, &settings(), &configuration, &remembered).unwrap();
        assert_eq!(used.current, configuration.nodes);
        assert!(used.known.contains(&(address(2), node(2))) && used.known.contains(&(address(4), node(4))));
        assert!(make(Shape::default(), &four).contains("are the same node"), "no volume is made on them");
    }

    #[test]
    fn a_volume_is_made_only_of_enough_nodes_that_all_answer() {
        assert!(
            volume_to_make(
                VOLUME,
                &Shape::default(),
                &survey_of(&[1, 2, 3, 4, 5], &[]),
                (0, 0),
                Time::default()
            )
            .is_ok()
        );
        assert_eq!(
            make(Shape::default(), &survey_of(&[1, 2, 3, 4], &[])),
            "code 3+2 needs 5 nodes, and 4 are given"
        );
        let sentence = make(Shape::default(), &survey_of(&[1, 2, 3, 4, 5], &[6]));
        assert!(sentence.ends_with("these do not: http://127.0.0.1:7006 (connection refused)"), "{sentence}");
    }

    #[test]
    fn a_name_that_the_pool_has_already_is_refused() {
        let mut survey = survey_of(&[1, 2, 3, 4, 5], &[]);
        let taken = VolumeEntry { descriptor: descriptor(&settings(), None), epoch: 3 };
        survey.answered[3].volumes.push(taken);
        assert!(make(Shape::default(), &survey).contains("--state"));
        let other = Shape { name: Some("other".into()), ..Shape::default() };
        assert!(volume_to_make(VOLUME, &other, &survey, (0, 0), Time::default()).is_ok());
    }

    #[test]
    fn a_volume_keeps_the_shape_it_was_made_with() {
        let settings = settings();
        assert!(check_shape(&Shape::default(), &settings).is_ok());
        let code = Shape { code: Some("4+2".parse().unwrap()), ..Shape::default() };
        let sentence = check_shape(&code, &settings).unwrap_err().0;
        assert!(sentence.starts_with("volume default has code 3+2, not 4+2"), "{sentence}");
        let hash = Shape { hash: Some(HashId::Sha256), ..Shape::default() };
        assert!(check_shape(&hash, &settings).unwrap_err().0.contains("blake3, not sha256"));
        let size = Shape { object_size: Some(1 << 20), ..Shape::default() };
        assert!(check_shape(&size, &settings).is_err());
        let name = Shape { name: Some("home".into()), ..Shape::default() };
        assert!(check_shape(&name, &settings).unwrap_err().0.contains("belongs to volume default, not home"));
    }

    #[test]
    fn silent_nodes_are_a_warning_while_enough_answer() {
        let (configuration, remembered) = five();
        let use_with = |up: &[u8], down: &[u8]| {
            nodes_to_use(&survey_of(up, down), false, &settings(), &configuration, &remembered)
        };
        assert!(use_with(&[1, 2, 3, 4, 5], &[]).unwrap().warnings.is_empty());
        let two_down = use_with(&[1, 2, 3], &[4, 5]).unwrap();
        assert_eq!(two_down.warnings.len(), 1, "three nodes take handoffs: {:?}", two_down.warnings);
        assert_eq!(two_down.current, configuration.nodes);
        let refusal = use_with(&[1, 2], &[3, 4, 5]).unwrap_err().0;
        assert!(refusal.starts_with("2 of the 5 nodes of volume default answer, 3 are needed"), "{refusal}");
        assert!(refusal.contains("http://127.0.0.1:7004"), "{refusal}");
    }

    #[test]
    fn a_node_that_moved_is_known_by_its_identity() {
        let (configuration, remembered) = five();
        let mut survey = survey_of(&[1, 2, 3, 4, 5], &[]);
        survey.answered[4].address = address(9);
        let nodes = nodes_to_use(&survey, true, &settings(), &configuration, &remembered).unwrap();
        assert_eq!(nodes.current, configuration.nodes);
        assert!(nodes.known.contains(&(address(9), node(5))) && nodes.known.len() == 5);
    }

    #[test]
    fn a_new_node_makes_a_new_configuration_and_the_old_one_stays_known() {
        let (configuration, remembered) = five();
        let survey = survey_of(&[1, 2, 3, 4, 6], &[]);
        let nodes = nodes_to_use(&survey, true, &settings(), &configuration, &remembered).unwrap();
        assert_eq!(nodes.current, [1, 2, 3, 4, 6].map(node));
        assert!(nodes.known.contains(&(address(5), node(5))));
    }

    /// A disk was replaced by an empty one: nobody was silent, and the node that was lost was in no line.
    #[test]
    fn a_node_whose_address_another_one_has_is_told_of_and_remembered() {
        let (configuration, remembered) = five();
        let mut survey = survey_of(&[1, 2, 3, 4, 6], &[]);
        survey.answered[4].address = address(5);
        for named in [false, true] {
            let nodes = nodes_to_use(&survey, named, &settings(), &configuration, &remembered).unwrap();
            assert_eq!(nodes.gone, [(address(5), node(5))]);
            assert!(nodes.known.contains(&(address(5), node(6))));
            let [warning] = &nodes.warnings[..] else { panic!("{:?}", nodes.warnings) };
            let told = format!("node {}, and another one answers at {}", node(5), address(5));
            assert!(warning.contains(&told), "{warning}");
            // As the next mount remembers it.
            let remembered = [nodes.known, nodes.gone].concat();
            let again = nodes_to_use(&survey, false, &settings(), &configuration, &remembered).unwrap();
            assert_eq!(again.gone, [(address(5), node(5))]);
            let back = nodes_to_use(
                &survey_of(&[1, 2, 3, 4, 5], &[]),
                false,
                &settings(),
                &configuration,
                &remembered,
            );
            assert!(back.unwrap().warnings.is_empty());
        }
        let forgotten = nodes_to_use(&survey, false, &settings(), &configuration, &[]).unwrap();
        assert!(forgotten.warnings[0].contains("where it was is not known"), "{:?}", forgotten.warnings);
    }

    #[test]
    fn nodes_named_in_part_change_nothing_and_strangers_are_refused() {
        let (configuration, remembered) = five();
        let use_named =
            |survey: Survey| nodes_to_use(&survey, true, &settings(), &configuration, &remembered);
        let silent_stranger = use_named(survey_of(&[1, 2, 3, 4], &[9])).unwrap();
        assert_eq!(silent_stranger.current, configuration.nodes);
        assert_eq!(silent_stranger.unknown, [address(9)]);
        assert!(use_named(survey_of(&[1, 2, 3, 4], &[])).unwrap_err().0.contains("the peers given are 4"));
        assert!(use_named(survey_of(&[11, 12, 13, 14, 15], &[])).unwrap_err().0.contains("not its nodes"));
    }

    #[test]
    fn what_can_be_stored_follows_from_the_code_and_the_nodes_left() {
        let least = |code: &str| (0..30).find(|nodes| can_store(code.parse().unwrap(), *nodes)).unwrap();
        assert_eq!(least("3+2"), 3);
        assert_eq!(least("2+2"), 2);
        assert_eq!(least("16+8"), 12);
        assert_eq!(least("3+1"), 1, "with p = 1 nothing is spared while nodes are down");
        assert!(can_store("3+1".parse().unwrap(), 4));
    }

    #[test]
    fn a_mount_point_must_be_an_empty_directory_that_exists() {
        let folder = tempfile::tempdir().unwrap();
        let sentence = |path: &Path| look_at(path).unwrap_err().0;
        assert!(sentence(&folder.path().join("none")).contains("does not exist"));
        assert!(look_at(folder.path()).is_ok());
        let file = folder.path().join("file");
        std::fs::write(&file, "").unwrap();
        assert!(sentence(&file).contains("is not a directory"));
        assert!(sentence(folder.path()).contains("is not empty"));
    }

    #[test]
    fn others_are_let_in_where_fuse_conf_says_so() {
        assert!(lets_others_in("mount_max = 10\nuser_allow_other\n"));
        assert!(!lets_others_in("#user_allow_other\n"));
        assert!(check_fuse(false).is_ok(), "the tests mount");
    }

    #[test]
    fn the_state_folder_lies_outside_the_mount() {
        assert!(check_apart(Path::new("/mnt/a"), Path::new("/mnt/a/state")).is_err());
        assert!(check_apart(Path::new("/mnt/a"), Path::new("/mnt/ab")).is_ok());
    }
}
