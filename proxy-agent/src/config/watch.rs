//! Waits for changes of the configuration file.

use std::{path::Path, time::Duration};

use tokio::time::{Instant, MissedTickBehavior, interval};
use tracing::error;

use super::LoadedFile;
use crate::folder_watch::FolderWatch;

/// How often to look for changes that inotify does not show, as behind symbolic links.
const RECHECK: Duration = Duration::from_secs(5);
/// How often an unusable text is tried again: the obstacle may be gone, as an API server that did not answer.
const TRY_AGAIN: Duration = Duration::from_secs(30);

/// Waits until the file has other contents that `trial` finds usable. A ConfigMap's exchange of its volume is such a change.
///
/// A file that is missing, or cannot be used, changes nothing: the failure is reported, and the agent keeps its
/// previous settings, because a restart would fail. `report` takes the reason, or that all is well again.
pub async fn changed<F: Future<Output = anyhow::Result<()>>>(
    file: &LoadedFile,
    trial: impl Fn(String) -> F,
    report: impl Fn(Option<String>),
) {
    let folder = file.path.parent().filter(|folder| !folder.as_os_str().is_empty());
    let mut events = FolderWatch::new(folder.unwrap_or(Path::new(".")).to_owned());
    let mut recheck = interval(RECHECK);
    recheck.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut seen = file.text.clone();
    let mut tried: Option<Instant> = None;
    let mut logged = None;
    loop {
        // Before reading, so that changes in the meantime are seen as well.
        events.attach();
        if let Ok(text) = tokio::fs::read_to_string(&file.path).await {
            let is_due = tried.is_some_and(|at| at.elapsed() >= TRY_AGAIN);
            if text == file.text {
                (seen, tried) = (text, None);
                if logged.take().is_some() {
                    report(None);
                }
            } else if text != seen || is_due {
                let Err(error) = trial(text.clone()).await else { return };
                let error = format!("{error:#}");
                if logged.as_ref() != Some(&error) {
                    error!("{error}; keeping the previous configuration");
                    report(Some(error.clone()));
                    logged = Some(error);
                }
                (seen, tried) = (text, Some(Instant::now()));
            }
        }
        tokio::select! {
            _ = events.settled() => {}
            _ = recheck.tick() => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{cell::RefCell, fs, os::unix::fs::symlink, path::PathBuf};

    use tokio::time::timeout;

    use super::*;
    use crate::config::file::KubeProxyConfiguration;

    const ONE: &str = "{apiVersion: kubeproxy.config.k8s.io/v1alpha1, kind: KubeProxyConfiguration}";
    const TWO: &str = "{apiVersion: kubeproxy.config.k8s.io/v1alpha1, kind: KubeProxyConfiguration, mode: x}";
    const PATIENCE: Duration = Duration::from_secs(10);
    const NOT_LONG: Duration = Duration::from_millis(300);

    fn load(path: PathBuf) -> LoadedFile {
        LoadedFile { text: fs::read_to_string(&path).unwrap(), path }
    }

    async fn parses(text: String) -> anyhow::Result<()> {
        KubeProxyConfiguration::parse(Path::new("config.conf"), &text).map(drop)
    }

    #[tokio::test]
    async fn a_file_that_is_written_to_ends_the_wait_once_it_can_be_used() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.conf");
        fs::write(&path, ONE).unwrap();
        let file = load(path.clone());
        let reports = RefCell::new(Vec::new());
        let wait = changed(&file, parses, |why| reports.borrow_mut().push(why.is_some()));
        tokio::pin!(wait);
        assert!(timeout(NOT_LONG, &mut wait).await.is_err(), "nothing changed");
        for (text, expected) in [
            (ONE, vec![]),
            ("kind: [", vec![true]),
            ("{kind: Pod}", vec![true, true]),
            (ONE, vec![true, true, false]),
        ] {
            fs::write(&path, text).unwrap();
            assert!(timeout(NOT_LONG, &mut wait).await.is_err(), "{text}");
            assert_eq!(*reports.borrow(), expected, "{text}");
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
        let wait = changed(&file, parses, |_| ());
        tokio::pin!(wait);
        assert!(timeout(NOT_LONG, &mut wait).await.is_err(), "nothing changed");
        symlink("..2", at("..data_tmp")).unwrap();
        fs::rename(at("..data_tmp"), at("..data")).unwrap();
        timeout(PATIENCE, wait).await.unwrap();
    }
}
