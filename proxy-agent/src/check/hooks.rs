//! Whether socket hooks take effect, as a real connection shows.

use super::{
    finding::Finding,
    trial::{Connection, Failure, Outcome, Trial},
};

const NAME: &str = "socket hooks";

pub(super) fn assess(trial: &Result<Trial, Failure>) -> Finding {
    let connections = match trial.as_ref().map(|trial| &trial.connections) {
        Err(why) => return Finding::unknown(NAME, format!("not tried: {why}")),
        Ok(Err(why)) => return Finding::unknown(NAME, format!("not tried: {why}")),
        Ok(Ok(connections)) => connections,
    };
    let failed = connections.iter().find_map(|Connection { vip, outcome }| match outcome {
        Outcome::NotTranslated(error) => Some((vip, error)),
        _ => None,
    });
    if let Some((vip, error)) = failed {
        let is_denied = error.as_ref().is_some_and(|error| error.raw_os_error() == Some(libc::EPERM));
        let why = error.as_ref().map_or_else(|| "it went elsewhere".to_owned(), ToString::to_string);
        let advice = if is_denied {
            "a program of others at a cgroup above refuses the connection: see `foreign programs`, and `bpftool cgroup tree`"
        } else {
            "a program of others at the same hooks may have changed the destination: see `foreign programs`, and `bpftool cgroup tree`"
        };
        return Finding::fail(
            NAME,
            format!("a connection to the test VIP {vip} is not translated: {why}"),
            advice,
        );
    }
    let translated: Vec<String> = connections
        .iter()
        .filter(|connection| matches!(connection.outcome, Outcome::Translated))
        .map(|connection| connection.vip.to_string())
        .collect();
    if translated.is_empty() {
        return Finding::unknown(NAME, "not tried: the loopback interface has no address");
    }
    Finding::pass(NAME, format!("connections to the test VIPs {} are translated", translated.join(" and ")))
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;
    use crate::{check::finding::State, datapath::Features};

    fn trial(outcomes: Vec<Outcome>) -> Result<Trial, Failure> {
        let vip = "192.0.2.53:80".parse().unwrap();
        let connections = outcomes.into_iter().map(|outcome| Connection { vip, outcome }).collect();
        let features =
            Features { set_retval: true, sk_storage: true, csum_ipv6: true, fib_src: true, tcx: true };
        Ok(Trial { features, loaded: 1, refused: Vec::new(), connections: Ok(connections) })
    }

    #[test]
    fn one_connection_that_fails_is_enough() {
        let error = |code| Outcome::NotTranslated(Some(io::Error::from_raw_os_error(code)));
        for (outcomes, expected) in [
            (vec![Outcome::Translated, Outcome::Translated], State::Pass),
            (vec![Outcome::Translated, Outcome::NoFamily], State::Pass),
            (vec![Outcome::NoFamily, Outcome::NoFamily], State::Unknown),
            (vec![Outcome::Translated, Outcome::NotTranslated(None)], State::Fail),
            (vec![error(libc::EINVAL), Outcome::NoFamily], State::Fail),
        ] {
            let described = format!("{outcomes:?}");
            assert_eq!(assess(&trial(outcomes)).state, expected, "{described}");
        }
        let denied = assess(&trial(vec![error(libc::EPERM)]));
        assert!(denied.advice.unwrap().contains("refuses"));
    }

    #[test]
    fn what_was_not_tried_is_unknown() {
        assert_eq!(assess(&Err(Failure::Refused("no permission".into()))).state, State::Unknown);
        let mut untried = trial(vec![]);
        if let Ok(trial) = &mut untried {
            trial.connections = Err("the cgroup hierarchy is mounted read-only".into());
        }
        let finding = assess(&untried);
        assert_eq!(finding.state, State::Unknown);
        assert!(finding.seen.contains("read-only"));
    }
}
