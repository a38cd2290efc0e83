//! The volumes a node was told of, and the newest epoch of each that has written.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use common::code::Code;
use common::hash::HashId;
use common::wire::{
    LeaseRequest, MAX_LEASE_MS, MountId, NodeId, Signature, VolumeDescriptor, VolumeEntry, VolumeId,
    VolumeList, json_length, volume_of, writer_statement,
};
use parking_lot::{Mutex, RwLock, RwLockReadGuard};
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::folder::Folder;
use crate::error::StoreError;
use crate::signed::is_signed;

const FORMAT: u32 = 1;
const NAME: &str = "volumes.json";

/// The most volumes of one node: `volumes.json` is written anew at each change, and what lists them all stays far below
/// the longest answer there is.
const MAX_VOLUMES: usize = 4096;
/// The longest text in what is said of a volume or its writer, in bytes.
const MAX_TEXT: usize = 255;
/// Bytes of what is listed of a volume beside its texts, at most.
const ENTRY_BYTES: usize = 256;

/// Every volume known.
pub struct Volumes {
    known: RwLock<BTreeMap<VolumeId, Arc<Volume>>>,
    /// One change of the file at a time.
    saving: Mutex<()>,
}

/// One volume.
pub struct Volume {
    descriptor: VolumeDescriptor,
    /// Held for reading while a change of this epoch is carried out, so that none of an older one follows a newer's first.
    epoch: RwLock<u32>,
    /// Who may write, and who does at the moment.
    grant: Mutex<Grant>,
    /// The last proof of a writer that was good.
    proof: Mutex<Option<(u32, Signature)>>,
}

#[derive(Default)]
struct Grant {
    /// To whom the newest epoch was granted, if this node granted it.
    mount: Option<MountId>,
    /// Whose lease runs until when; forgotten when the node is started again, as the epoch is what keeps bytes safe.
    holder: Option<Holder>,
}

struct Holder {
    mount: MountId,
    host: String,
    until: Instant,
}

#[derive(Serialize, Deserialize)]
struct VolumesFile {
    format: u32,
    volumes: Vec<VolumeEntry>,
    /// To whom the newest epoch of a volume was granted.
    #[serde(default)]
    grants: BTreeMap<String, MountId>,
}

impl Volume {
    fn new(descriptor: VolumeDescriptor, epoch: u32, grant: Mutex<Grant>) -> Volume {
        Volume { descriptor, epoch: RwLock::new(epoch), grant, proof: Mutex::default() }
    }

    /// Whether who shows this may change the volume at a node under an epoch. A volume without an owner asks for nothing.
    pub fn authorize(&self, epoch: u32, node: NodeId, shown: Option<Signature>) -> Result<(), StoreError> {
        let Some(owner) = &self.descriptor.owner else { return Ok(()) };
        let volume = self.descriptor.volume;
        let shown = shown.ok_or(StoreError::Forbidden { volume, epoch })?;
        // As long as nobody else shows something good, it is compared only.
        let is_known = self.proof.lock().is_some_and(|known| is_same(known, (epoch, shown)));
        if is_known {
            return Ok(());
        }
        if !is_signed(&owner.0, &writer_statement(volume, epoch, node), shown) {
            return Err(StoreError::Forbidden { volume, epoch });
        }
        *self.proof.lock() = Some((epoch, shown));
        Ok(())
    }
}

/// How long it takes says nothing about where two signatures differ.
fn is_same(one: (u32, Signature), other: (u32, Signature)) -> bool {
    one.0 == other.0 && blake3::hash(&one.1.0) == blake3::hash(&other.1.0)
}

impl Volumes {
    /// What earlier runs remembered.
    pub fn load(folder: &Folder) -> Result<Volumes, StoreError> {
        let refused = |why: String| StoreError::folder(folder.path(), format!("{NAME}: {why}"));
        let mut known = BTreeMap::new();
        if let Some(bytes) = folder.read(NAME).map_err(|error| refused(error.to_string()))? {
            let file: VolumesFile =
                serde_json::from_slice(&bytes).map_err(|error| refused(error.to_string()))?;
            if file.format != FORMAT {
                return Err(refused(format!("its format is {}, not {FORMAT}", file.format)));
            }
            for VolumeEntry { descriptor, epoch } in file.volumes {
                // Earlier versions took any. No mount made it, and it would make the list too long for every mount.
                if let Err(error) = check_texts(&descriptor) {
                    tracing::warn!(volume = %descriptor.volume, %error, "a volume is left out");
                    continue;
                }
                let mount = file.grants.get(&descriptor.volume.to_string()).copied();
                let grant = Mutex::new(Grant { mount, holder: None });
                let volume = Volume::new(descriptor, epoch, grant);
                known.insert(volume.descriptor.volume, Arc::new(volume));
            }
        }
        Ok(Volumes { known: RwLock::new(known), saving: Mutex::new(()) })
    }

    /// Remember a volume, durably. The same again changes nothing.
    pub fn register(&self, folder: &Folder, descriptor: VolumeDescriptor) -> Result<(), StoreError> {
        check(&descriptor)?;
        let _saving = self.saving.lock();
        let is_owned = descriptor.owner.is_some();
        for known in self.known.read().values().map(|volume| &volume.descriptor) {
            if *known == descriptor {
                return Ok(());
            }
            if is_owned && known.volume == descriptor.volume && known.owner.is_none() {
                // Said by somebody who had no key, about an identity that only a key makes.
                continue;
            }
            if known.volume == descriptor.volume || known.name == descriptor.name {
                let why = format!("volume {} {:?} is here with another shape", known.volume, known.name);
                return Err(StoreError::Conflict(why));
            }
        }
        let mut list = self.list();
        list.volumes.retain(|entry| entry.descriptor.volume != descriptor.volume);
        if list.volumes.len() >= MAX_VOLUMES {
            return Err(StoreError::TooManyVolumes(MAX_VOLUMES));
        }
        list.volumes.push(VolumeEntry { descriptor: descriptor.clone(), epoch: 0 });
        self.save(folder, list, Some((descriptor.volume, None)))?;
        let volume = Arc::new(Volume::new(descriptor, 0, Mutex::default()));
        self.known.write().insert(volume.descriptor.volume, volume);
        Ok(())
    }

    /// Every volume and the newest epoch seen of it.
    pub fn list(&self) -> VolumeList {
        let known = self.known.read();
        let entry = |volume: &Arc<Volume>| VolumeEntry {
            descriptor: volume.descriptor.clone(),
            epoch: *volume.epoch.read_recursive(),
        };
        VolumeList { volumes: known.values().map(entry).collect() }
    }

    /// Bytes of these as the wire has them, at most.
    pub fn list_length(&self) -> usize {
        let length = |VolumeDescriptor { name, code, hash, .. }: &VolumeDescriptor| {
            let texts = [name, code, hash].map(|text| json_length(text));
            ENTRY_BYTES + texts.iter().sum::<usize>()
        };
        self.known.read().values().map(|volume| length(&volume.descriptor)).sum()
    }

    /// The volume with this identity.
    pub fn find(&self, volume: VolumeId) -> Result<Arc<Volume>, StoreError> {
        let known = self.known.read().get(&volume).cloned();
        known.ok_or_else(|| StoreError::NotFound(format!("volume {volume}")))
    }

    /// Let a change of `epoch` happen while the guard lives; a newer epoch is remembered first, an older refused.
    pub fn admit<'a>(
        &self,
        folder: &Folder,
        volume: &'a Volume,
        epoch: u32,
    ) -> Result<RwLockReadGuard<'a, u32>, StoreError> {
        loop {
            let newest = volume.epoch.read();
            if epoch == *newest {
                return Ok(newest);
            }
            if epoch < *newest {
                let volume = volume.descriptor.volume;
                return Err(StoreError::StaleEpoch { volume, asked: epoch, newest: *newest });
            }
            drop(newest);
            let _saving = self.saving.lock();
            if epoch > *volume.epoch.read() {
                self.advance(folder, volume, epoch, None)?;
                *volume.grant.lock() = Grant::default();
            }
        }
    }

    /// Grant an epoch and a lease to one mount, renew the lease, or give it back.
    pub fn lease(&self, folder: &Folder, volume: &Volume, request: &LeaseRequest) -> Result<(), StoreError> {
        check_text("a host's name", &request.host)?;
        let _saving = self.saving.lock();
        let id = volume.descriptor.volume;
        let now = Instant::now();
        let (granted, other) = {
            let grant = volume.grant.lock();
            let others = |holder: &&Holder| holder.mount != request.mount && holder.until > now;
            let other = grant.holder.as_ref().filter(others);
            (grant.mount, other.map(|holder| (holder.host.clone(), (holder.until - now).as_secs())))
        };
        if let Some((host, seconds)) = other
            && !request.take_over
        {
            return Err(StoreError::Leased { volume: id, host, seconds });
        }
        let newest = *volume.epoch.read();
        let taken = request.epoch == newest && granted.is_some_and(|granted| granted != request.mount);
        if request.epoch < newest || taken {
            return Err(StoreError::StaleEpoch { volume: id, asked: request.epoch, newest });
        }
        if request.epoch > newest || granted.is_none() {
            self.advance(folder, volume, request.epoch, Some(request.mount))?;
        }
        let lease = Duration::from_millis(request.lease_ms.min(MAX_LEASE_MS));
        let holder = Holder { mount: request.mount, host: request.host.clone(), until: now + lease };
        *volume.grant.lock() =
            Grant { mount: Some(request.mount), holder: (!lease.is_zero()).then_some(holder) };
        Ok(())
    }

    /// Remember an epoch and to whom it was granted; whoever calls holds `saving`.
    fn advance(
        &self,
        folder: &Folder,
        volume: &Volume,
        epoch: u32,
        mount: Option<MountId>,
    ) -> Result<(), StoreError> {
        let mut list = self.list();
        for entry in list.volumes.iter_mut().filter(|entry| entry.descriptor == volume.descriptor) {
            entry.epoch = epoch;
        }
        self.save(folder, list, Some((volume.descriptor.volume, mount)))?;
        // Waits for the changes of the older epoch that were let in; none follows them.
        *volume.epoch.write() = epoch;
        Ok(())
    }

    /// Write the file; `changed` is a volume whose grant is another one now.
    fn save(
        &self,
        folder: &Folder,
        list: VolumeList,
        changed: Option<(VolumeId, Option<MountId>)>,
    ) -> Result<(), StoreError> {
        let known = self.known.read();
        let granted = known.iter().map(|(id, volume)| match changed {
            Some((volume, mount)) if volume == *id => (*id, mount),
            _ => (*id, volume.grant.lock().mount),
        });
        let grants = granted.filter_map(|(id, mount)| Some((id.to_string(), mount?))).collect();
        let file = VolumesFile { format: FORMAT, volumes: list.volumes, grants };
        let bytes = serde_json::to_vec(&file).expect("names and numbers are JSON");
        folder.replace(NAME, &bytes).map_err(StoreError::io(NAME))
    }
}

fn check(descriptor: &VolumeDescriptor) -> Result<(), StoreError> {
    let wrong = |why: String| Err(StoreError::Request(why));
    check_texts(descriptor)?;
    if descriptor.volume.0 == [0; 16] {
        return wrong("a volume's identity is not all zeros".into());
    }
    if descriptor.name.is_empty() {
        return wrong("a volume has a name".into());
    }
    if descriptor.owner.is_some_and(|owner| volume_of(&owner) != descriptor.volume) {
        return wrong("the volume's identity is not that of its key".into());
    }
    if let Err(error) = descriptor.code.parse::<Code>() {
        return wrong(error.to_string());
    }
    if let Err(error) = descriptor.hash.parse::<HashId>() {
        return wrong(error.to_string());
    }
    Ok(())
}

/// Whether all that a descriptor says in words is of a length that can be kept; of what is kept this holds always.
fn check_texts(VolumeDescriptor { name, code, hash, .. }: &VolumeDescriptor) -> Result<(), StoreError> {
    check_text("a volume's name", name)?;
    check_text("a volume's code", code)?;
    check_text("a volume's hash", hash)
}

fn check_text(what: &str, text: &str) -> Result<(), StoreError> {
    match text.len() > MAX_TEXT {
        true => Err(StoreError::Request(format!("{what} has at most {MAX_TEXT} bytes"))),
        false => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use common::wire::{MAX_BODY, OwnerId, RefusalCode};

    use super::super::disk::LocalDisk;
    use super::*;

    fn descriptor(volume: u8, name: &str) -> VolumeDescriptor {
        VolumeDescriptor {
            volume: VolumeId([volume; 16]),
            name: name.into(),
            code: "3+2".into(),
            hash: "blake3".into(),
            object_size: 4 << 20,
            owner: None,
        }
    }

    #[test]
    fn a_volume_is_remembered_as_it_was_first_told() {
        let temp = tempfile::tempdir().unwrap();
        let folder = Folder::open(temp.path(), Arc::new(LocalDisk)).unwrap();
        let volumes = Volumes::load(&folder).unwrap();
        volumes.register(&folder, descriptor(1, "a")).unwrap();
        volumes.register(&folder, descriptor(1, "a")).unwrap();
        let other_shape = VolumeDescriptor { code: "4+2".into(), ..descriptor(1, "a") };
        assert!(matches!(volumes.register(&folder, other_shape), Err(StoreError::Conflict(_))));
        assert!(matches!(volumes.register(&folder, descriptor(2, "a")), Err(StoreError::Conflict(_))));
        let nonsense = VolumeDescriptor { code: "0+0".into(), ..descriptor(3, "c") };
        assert!(matches!(volumes.register(&folder, nonsense), Err(StoreError::Request(_))));
        assert_eq!(Volumes::load(&folder).unwrap().list(), volumes.list());
        assert_eq!(volumes.list().volumes.len(), 1);
    }

    /// A code with 32 MiB of zeros before it was taken, kept, written anew at each change and listed: from then on the
    /// node's list was longer than any answer may be, and every mount of every volume refused.
    #[test]
    fn what_is_said_of_a_volume_and_its_writer_is_bounded() {
        let temp = tempfile::tempdir().unwrap();
        let folder = Folder::open(temp.path(), Arc::new(LocalDisk)).unwrap();
        let volumes = Volumes::load(&folder).unwrap();
        let long = "0".repeat(1 << 20);
        let wrong = [
            VolumeDescriptor { name: long.clone(), ..descriptor(1, "a") },
            VolumeDescriptor { name: String::new(), ..descriptor(1, "a") },
            VolumeDescriptor { code: format!("{long}3+2"), ..descriptor(1, "a") },
            VolumeDescriptor { code: "03+2".into(), ..descriptor(1, "a") },
            VolumeDescriptor { hash: long.clone(), ..descriptor(1, "a") },
        ];
        for descriptor in wrong {
            let refused = volumes.register(&folder, descriptor).unwrap_err();
            assert!(matches!(&refused, StoreError::Request(why) if why.len() < 1000), "{refused}");
        }
        volumes.register(&folder, descriptor(1, &"a".repeat(MAX_TEXT))).unwrap();
        let volume = volumes.find(VolumeId([1; 16])).unwrap();
        let greedy = LeaseRequest { host: long, ..request(1, 1) };
        assert!(matches!(volumes.lease(&folder, &volume, &greedy), Err(StoreError::Request(_))));
        volumes.lease(&folder, &volume, &request(1, 1)).unwrap();
    }

    /// As an earlier version left them.
    fn write(folder: &Folder, descriptors: impl Iterator<Item = VolumeDescriptor>) {
        let volumes = descriptors.map(|descriptor| VolumeEntry { descriptor, epoch: 7 }).collect();
        let file = VolumesFile { format: FORMAT, volumes, grants: BTreeMap::new() };
        folder.replace(NAME, &serde_json::to_vec(&file).unwrap()).unwrap();
    }

    fn numbered(number: usize) -> VolumeDescriptor {
        let volume = VolumeId((number as u128 + 1).to_be_bytes());
        VolumeDescriptor { volume, ..descriptor(1, &format!("volume {number}")) }
    }

    #[test]
    fn a_node_keeps_so_many_volumes_and_no_more() {
        let temp = tempfile::tempdir().unwrap();
        let folder = Folder::open(temp.path(), Arc::new(LocalDisk)).unwrap();
        let owner = OwnerId([3; 32]);
        let squatted = VolumeDescriptor { volume: volume_of(&owner), ..descriptor(1, "squatted") };
        write(&folder, (1..MAX_VOLUMES).map(numbered).chain([squatted.clone()]));
        let volumes = Volumes::load(&folder).unwrap();
        let refused = volumes.register(&folder, numbered(0)).unwrap_err();
        assert_eq!(refused.code(), RefusalCode::NoSpace);
        volumes.register(&folder, numbered(1)).unwrap();
        // Whoever has the key takes the place of who had none.
        volumes.register(&folder, VolumeDescriptor { owner: Some(owner), ..squatted }).unwrap();
        assert_eq!(volumes.list().volumes.len(), MAX_VOLUMES);
        drop(volumes.admit(&folder, &volumes.find(numbered(2).volume).unwrap(), 9).unwrap());
    }

    #[test]
    fn the_longest_list_of_volumes_is_far_below_the_longest_answer() {
        let longest = VolumeDescriptor {
            volume: VolumeId([0xff; 16]),
            name: "\u{1}".repeat(MAX_TEXT),
            code: "127+128".into(),
            hash: "blake3".into(),
            object_size: u64::MAX,
            owner: Some(OwnerId([0xff; 32])),
        };
        let known = Volume::new(longest, u32::MAX, Mutex::default());
        let known = RwLock::new([(known.descriptor.volume, Arc::new(known))].into());
        let volumes = Volumes { known, saving: Mutex::default() };
        let bytes = serde_json::to_vec(&volumes.list().volumes).unwrap().len();
        assert!(bytes <= volumes.list_length(), "{bytes} of {}", volumes.list_length());
        assert!(volumes.list_length() * MAX_VOLUMES <= MAX_BODY / 4, "{bytes} bytes each");
    }

    #[test]
    fn what_an_earlier_version_kept_is_loaded_but_for_what_no_mount_can_have_made() {
        let temp = tempfile::tempdir().unwrap();
        let folder = Folder::open(temp.path(), Arc::new(LocalDisk)).unwrap();
        let odd = VolumeDescriptor { code: "03+2".into(), ..numbered(1) };
        let huge = VolumeDescriptor { code: format!("{}3+2", "0".repeat(1 << 20)), ..numbered(2) };
        write(&folder, (3..MAX_VOLUMES + 9).map(numbered).chain([odd.clone(), huge.clone()]));
        let volumes = Volumes::load(&folder).unwrap();
        assert_eq!(volumes.list().volumes.len(), MAX_VOLUMES + 7);
        let kept = volumes.find(odd.volume).unwrap();
        assert_eq!((&kept.descriptor, *kept.epoch.read()), (&odd, 7));
        assert!(volumes.find(huge.volume).is_err());
        drop(volumes.admit(&folder, &kept, 8).unwrap());
        assert!(folder.read(NAME).unwrap().unwrap().len() < 1 << 20, "it is gone with the next change");
    }

    #[test]
    fn a_newer_epoch_is_durable_before_it_is_obeyed_and_an_older_one_refused() {
        let temp = tempfile::tempdir().unwrap();
        let folder = Folder::open(temp.path(), Arc::new(LocalDisk)).unwrap();
        let volumes = Volumes::load(&folder).unwrap();
        volumes.register(&folder, descriptor(1, "a")).unwrap();
        let volume = volumes.find(VolumeId([1; 16])).unwrap();
        drop(volumes.admit(&folder, &volume, 5).unwrap());
        assert_eq!(Volumes::load(&folder).unwrap().list().volumes[0].epoch, 5);
        let stale = volumes.admit(&folder, &volume, 4).err();
        assert!(matches!(stale, Some(StoreError::StaleEpoch { asked: 4, newest: 5, .. })));
        drop(volumes.admit(&folder, &volume, 5).unwrap());
    }

    fn request(mount: u8, epoch: u32) -> LeaseRequest {
        let mount = MountId([mount; 16]);
        LeaseRequest { epoch, mount, host: format!("host of {mount}"), lease_ms: 60_000, take_over: false }
    }

    #[test]
    fn an_epoch_is_granted_once_and_a_live_lease_keeps_others_out() {
        let temp = tempfile::tempdir().unwrap();
        let folder = Folder::open(temp.path(), Arc::new(LocalDisk)).unwrap();
        let volumes = Volumes::load(&folder).unwrap();
        volumes.register(&folder, descriptor(1, "a")).unwrap();
        let volume = volumes.find(VolumeId([1; 16])).unwrap();
        let ask = |request: &LeaseRequest| volumes.lease(&folder, &volume, request);
        ask(&request(1, 3)).unwrap();
        ask(&request(1, 3)).unwrap();
        let leased = ask(&request(2, 4)).unwrap_err();
        assert!(matches!(&leased, StoreError::Leased { host, .. } if host.starts_with("host of 01")));
        ask(&LeaseRequest { lease_ms: 0, ..request(1, 3) }).unwrap();
        assert!(
            matches!(ask(&request(2, 3)), Err(StoreError::StaleEpoch { .. })),
            "3 was granted to another"
        );
        ask(&request(2, 4)).unwrap();
        assert!(matches!(ask(&request(1, 3)), Err(StoreError::Leased { .. })));
        ask(&LeaseRequest { take_over: true, ..request(1, 5) }).unwrap();
        assert!(volumes.admit(&folder, &volume, 4).is_err(), "who was taken over from is fenced");
        // Started again, it remembers the grant and not the lease.
        let volumes = Volumes::load(&folder).unwrap();
        let volume = volumes.find(VolumeId([1; 16])).unwrap();
        assert!(matches!(
            volumes.lease(&folder, &volume, &request(2, 5)),
            Err(StoreError::StaleEpoch { asked: 5, newest: 5, .. })
        ));
        volumes.lease(&folder, &volume, &request(2, 6)).unwrap();
    }
}
