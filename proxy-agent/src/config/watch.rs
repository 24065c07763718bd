//! Tells when the configuration file changed.

use std::{path::Path, time::Duration};

use tokio::time::{MissedTickBehavior, interval};
use tracing::error;

use super::{LoadedFile, file::KubeProxyConfiguration};
use crate::source::manifests::FolderWatch;

/// How often to look for what inotify does not show, as behind symbolic links.
const RECHECK: Duration = Duration::from_secs(5);

/// Waits until the file says something else that can be used. A ConfigMap's exchange of its volume is such a change.
///
/// A file that is away, or cannot be used, changes nothing: it is told, and the agent goes on with what it was told
/// before, rather than not starting again.
pub async fn changed(file: &LoadedFile) {
    let folder = file.path.parent().filter(|folder| !folder.as_os_str().is_empty());
    let mut events = FolderWatch::new(folder.unwrap_or(Path::new(".")).to_owned());
    let mut recheck = interval(RECHECK);
    recheck.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut seen = file.text.clone();
    loop {
        // Before reading, so that what changes in the meantime is seen as well.
        events.attach();
        if let Ok(text) = tokio::fs::read_to_string(&file.path).await
            && text != seen
        {
            if text != file.text {
                match KubeProxyConfiguration::parse(&file.path, &text) {
                    Ok(_) => return,
                    Err(error) => error!("{error:#}; going on with what it said before"),
                }
            }
            seen = text;
        }
        tokio::select! {
            _ = events.settled() => {}
            _ = recheck.tick() => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::symlink, path::PathBuf};

    use tokio::time::timeout;

    use super::*;

    const ONE: &str = "{apiVersion: kubeproxy.config.k8s.io/v1alpha1, kind: KubeProxyConfiguration}";
    const TWO: &str = "{apiVersion: kubeproxy.config.k8s.io/v1alpha1, kind: KubeProxyConfiguration, mode: x}";
    const PATIENCE: Duration = Duration::from_secs(10);
    const NOT_LONG: Duration = Duration::from_millis(300);

    fn load(path: PathBuf) -> LoadedFile {
        LoadedFile { text: fs::read_to_string(&path).unwrap(), path }
    }

    #[tokio::test]
    async fn a_file_that_is_written_to_ends_the_wait_once_it_can_be_used() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.conf");
        fs::write(&path, ONE).unwrap();
        let file = load(path.clone());
        let wait = changed(&file);
        tokio::pin!(wait);
        assert!(timeout(NOT_LONG, &mut wait).await.is_err(), "nothing changed");
        for same_or_worse in [ONE, "kind: [", "{kind: Pod}"] {
            fs::write(&path, same_or_worse).unwrap();
            assert!(timeout(NOT_LONG, &mut wait).await.is_err(), "{same_or_worse}");
        }
        fs::remove_file(&path).unwrap();
        assert!(timeout(NOT_LONG, &mut wait).await.is_err(), "it is away");
        fs::write(&path, TWO).unwrap();
        timeout(PATIENCE, wait).await.unwrap();
    }

    #[tokio::test]
    async fn a_config_map_s_exchange_is_a_change() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        for (version, text) in [("..1", ONE), ("..2", TWO)] {
            fs::create_dir(at(version)).unwrap();
            fs::write(at(version).join("config.conf"), text).unwrap();
        }
        symlink("..1", at("..data")).unwrap();
        symlink("..data/config.conf", at("config.conf")).unwrap();
        let file = load(at("config.conf"));
        let wait = changed(&file);
        tokio::pin!(wait);
        assert!(timeout(NOT_LONG, &mut wait).await.is_err(), "nothing changed");
        symlink("..2", at("..data_tmp")).unwrap();
        fs::rename(at("..data_tmp"), at("..data")).unwrap();
        timeout(PATIENCE, wait).await.unwrap();
    }
}
