use std::{fs, path::Path, time::Duration};

use tokio::time::timeout;

use super::{lock::Lock, *};
use crate::datapath::pins::Pins;

/// Long enough on a busy machine.
const PATIENCE: Duration = Duration::from_secs(20);

fn root() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

fn take(root: &Path) -> Lock {
    Lock::attempt(root).unwrap().expect("the lock is free")
}

#[test]
fn one_has_the_lock_until_it_is_dropped() {
    let (root, other) = (root(), root());
    let lock = take(root.path());
    assert!(Lock::attempt(root.path()).unwrap().is_none());
    assert!(!is_free(root.path()));
    drop(take(other.path()));
    drop(lock);
    assert!(is_free(root.path()));
    drop(take(root.path()));
    let missing = Lock::attempt(&root.path().join("none")).unwrap_err();
    assert_eq!(missing.kind(), std::io::ErrorKind::NotFound);
}

#[test]
fn a_directory_that_was_removed_is_no_longer_locked() {
    let root = root();
    let path = root.path().join("pins");
    fs::create_dir(&path).unwrap();
    let old = take(&path);
    assert!(old.is_at(&path));
    fs::remove_dir(&path).unwrap();
    assert!(!old.is_at(&path));
    fs::create_dir(&path).unwrap();
    assert!(!old.is_at(&path), "another one of that name");
    assert!(take(&path).is_at(&path));
}

#[test]
fn one_asks_at_a_time_and_a_directory_that_is_left_asks_nothing() {
    let root = root();
    assert!(!Request::is_there(root.path()));
    let request = Request::attempt(root.path()).unwrap().expect("no request exists");
    assert!(Request::is_there(root.path()));
    assert!(Request::attempt(root.path()).unwrap().is_none());
    drop(request);
    assert!(!Request::is_there(root.path()));
    assert_eq!(fs::read_dir(root.path()).unwrap().count(), 0);
    // The remains of a killed process.
    fs::create_dir(root.path().join("successor")).unwrap();
    assert!(!Request::is_there(root.path()));
    assert!(Request::attempt(root.path()).unwrap().is_some());
}

#[tokio::test]
async fn the_holder_is_notified() {
    let root = root();
    let pins = Pins::new(&root.path().join("pins"));
    let links = pins.root().join("links");
    pins.own_directories().iter().for_each(|directory| fs::create_dir_all(directory).unwrap());
    let mut holder = Holder::new(&pins, take(pins.root()));
    let nothing = timeout(Duration::from_millis(100), holder.notice()).await;
    assert!(nothing.is_err(), "{nothing:?}");
    let request = Request::attempt(pins.root()).unwrap();
    assert_eq!(timeout(PATIENCE, holder.notice()).await, Ok(Notice::Asked));
    drop(request);
    let nothing = timeout(Duration::from_millis(100), holder.notice()).await;
    assert!(nothing.is_err(), "{nothing:?}");
    fs::remove_dir(&links).unwrap();
    assert_eq!(timeout(PATIENCE, holder.notice()).await, Ok(Notice::Gone));
    fs::create_dir(&links).unwrap();
    fs::rename(pins.root(), root.path().join("away")).unwrap();
    assert_eq!(timeout(PATIENCE, holder.notice()).await, Ok(Notice::Gone));
    let (path, _watch) = holder.release();
    assert!(is_free(&path));
}
