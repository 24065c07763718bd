//! Flags of kube-proxy that have no effect here, accepted so that its arguments can stay unchanged.

use clap::{Arg, ArgAction, ArgMatches, Args, Command, Error, FromArgMatches};

use crate::kube_proxy::unused::{FLAGS, Unused};

/// The given flags without effect, each with the reason.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UnusedFlags(pub Vec<Given>);

/// A flag that was given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Given {
    /// The flag, and why it has no effect.
    pub flag: &'static Unused,
    /// Its value.
    pub value: String,
}

impl Args for UnusedFlags {
    fn augment_args(command: Command) -> Command {
        command.args(FLAGS.iter().map(|flag| {
            let argument = Arg::new(flag.name).long(flag.name).hide(true).action(ArgAction::Append);
            if flag.is_bool {
                argument.num_args(0..=1).require_equals(true).default_missing_value("true")
            } else {
                argument.num_args(1)
            }
        }))
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for UnusedFlags {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, Error> {
        let given = FLAGS.iter().filter_map(|flag| {
            let values = matches.get_many::<String>(flag.name)?;
            Some(Given { flag, value: values.map(String::as_str).collect::<Vec<_>>().join(",") })
        });
        Ok(Self(given.collect()))
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}
