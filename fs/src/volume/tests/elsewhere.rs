//! A volume that is written by one host and then by another, each with a store that counts changes in its own way.

use super::*;

/// A volume with a file, unmounted, and a store that is made anew; also the store it was written with.
async fn recovered() -> (Bench, Arc<dyn MetadataStore>) {
    let mut bench = Bench::new().await;
    let volume = bench.mount().await;
    create(&volume, "first");
    volume.shut_down().await.unwrap();
    drop(volume);
    let here = bench.metadata.clone();
    bench.recover().await;
    (bench, here)
}

/// The store here catches up with what was written elsewhere, and its mount is killed before it wrote anything. The next
/// one finds the journal where the store remembers it, with an entry whose count of changes is the other host's: what was
/// changed from then on counted as in the pool, although nothing of it was.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_written_after_another_hosts_last_entry_reaches_the_pool() {
    let (mut bench, here) = recovered().await;
    bench.mount = MountId([2; 16]);
    let volume = bench.mount().await;
    for k in 0..100 {
        create(&volume, &format!("elsewhere {k}"));
    }
    volume.shut_down().await.unwrap();
    drop(volume);
    bench.metadata = here;
    bench.mount = MountId([1; 16]);
    let reader = bench.reader().await.unwrap();
    journal::catch_up(&bench.metadata, &reader, &bench.key().verifying_key(), bench.mount, None)
        .await
        .unwrap();
    let volume = bench.mount().await;
    let ino = create(&volume, "here");
    write(&volume, ino, 0, b"bytes").await;
    volume.fsync(ino).await.unwrap();
    drop(volume);
    bench.recover().await;
    assert_eq!(bench.metadata.lookup(ROOT, b"here").unwrap().size, 5);
}

/// Of what reached the pool a store notes many entries together, so one whose mount is killed has changes in its outbox
/// that the pool has. They are neither a reason to refuse it, nor laid over what other hosts made of them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_reached_the_pool_unnoted_is_not_laid_over_what_another_host_wrote_since() {
    come_back_unnoted(MountId([1; 16])).await;
}

/// A copy of a state folder is known by another identity, and the entries that its outbox is in are somebody else's.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_of_a_store_knows_what_the_original_wrote_before_it_noted_that() {
    come_back_unnoted(MountId([3; 16])).await;
}

async fn come_back_unnoted(known_by: MountId) {
    let mut bench = Bench::new().await;
    let mut name = String::new();
    for k in 0..100 {
        let volume = bench.mount().await;
        name = format!("here {k}");
        let ino = create(&volume, &name);
        volume.fsync(ino).await.unwrap();
        crash(volume).await;
        if !bench.metadata.outbox(0, usize::MAX).unwrap().records.is_empty() {
            break;
        }
    }
    assert!(!bench.metadata.outbox(0, usize::MAX).unwrap().records.is_empty(), "all was noted, each time");
    let here = bench.metadata.clone();
    bench.recover().await;
    bench.mount = MountId([2; 16]);
    let volume = bench.mount().await;
    volume.rename((ROOT, name.as_bytes()), (ROOT, b"there"), RenameMode::Replace, caller(7)).unwrap();
    volume.shut_down().await.unwrap();
    drop(volume);
    bench.metadata = here;
    bench.mount = known_by;
    let volume = bench.mount().await;
    assert!(bench.metadata.lookup(ROOT, name.as_bytes()).is_err());
    assert!(bench.metadata.lookup(ROOT, b"there").is_ok());
    volume.shut_down().await.unwrap();
}

/// Who did not grant the epoch may still take entries of who had the volume, after it was asked for those it has.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_that_did_not_grant_the_epoch_do_not_count_for_the_newest_entry() {
    let (bench, _) = recovered().await;
    let public = bench.key().verifying_key();
    let catch_up = async |unfenced: usize| {
        let unfenced = bench.nodes[..unfenced].iter().map(|node| node.node()).collect();
        let reader = Reader { unfenced, ..bench.reader().await.unwrap() };
        journal::catch_up(&bench.metadata, &reader, &public, MountId([2; 16]), None).await
    };
    catch_up(2).await.unwrap();
    let error = catch_up(3).await.unwrap_err();
    assert!(matches!(&error, Error::Pool(why) if why.starts_with("2 of the 5 nodes")), "{error:?}");
}

/// Two hosts went on with other nodes each, and called them by the same number: the objects of one lie on its nodes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_configuration_that_was_not_told_does_not_take_anothers_number() {
    let (mut bench, here) = recovered().await;
    let mut nodes = bench.metadata.configurations().unwrap()[0].nodes.clone();
    nodes.rotate_left(1);
    assert_eq!(here.configure(&nodes).unwrap().number, 2);
    nodes.rotate_left(1);
    bench.mount = MountId([2; 16]);
    let theirs = bench.metadata.configure(&nodes).unwrap();
    assert_eq!(theirs.number, 2);
    let volume = bench.mount().await;
    create(&volume, "elsewhere");
    volume.shut_down().await.unwrap();
    drop(volume);
    let there = std::mem::replace(&mut bench.metadata, here.clone());
    let (reader, public) = (bench.reader().await.unwrap(), bench.key().verifying_key());
    let error =
        journal::catch_up(&here, &reader, &public, MountId([1; 16]), None).await.map(drop).unwrap_err();
    assert!(matches!(&error, Error::Pool(why) if why.contains("never reached the pool")), "{error:?}");
    assert_eq!(there.configurations().unwrap()[1], theirs);
}
