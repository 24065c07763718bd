//! The agent under test, one per node.

use std::{
    env,
    fs::{self, File},
    path::PathBuf,
    process::{Command, Stdio},
    thread,
    time::Duration,
};

use anyhow::{Context, Result, bail};
use nix::sys::signal::Signal;

use super::{Cluster, Host, Node, Process, netns::pipe, until};
use crate::workspace;

const HEALTHZ: &str = "127.0.0.1:10256";
/// Enough for a machine that is emulated on a busy host, and whose verifier is slow.
const START_DEADLINE: Duration = Duration::from_secs(300);

/// The agent's binary: PROXY_AGENT_BIN, else the newest of the target directory's release and debug builds.
pub fn agent_binary() -> Result<PathBuf> {
    if let Some(path) = env::var_os("PROXY_AGENT_BIN") {
        return Ok(path.into());
    }
    let dir = env::var_os("CARGO_TARGET_DIR").unwrap_or_else(|| "target".into());
    let target = workspace().join(dir);
    let built = ["release", "debug"].map(|profile| target.join(profile).join("proxy-agent"));
    let newest = built
        .into_iter()
        .filter(|path| path.is_file())
        .max_by_key(|path| fs::metadata(path).and_then(|data| data.modified()).ok());
    newest.context("no proxy-agent binary: run `cargo xtask build`, or set PROXY_AGENT_BIN")
}

/// An agent, running or not. Its log is printed when the test fails.
#[derive(Debug)]
pub struct Agent {
    host: Host,
    bpffs: PathBuf,
    args: Vec<String>,
    other_layouts: String,
    log: PathBuf,
    process: Option<Process>,
}

impl Cluster {
    /// Starts the agent of a node with further arguments for `run`, and waits until it reports that it is healthy.
    pub fn start_agent(&self, node: usize, args: &[&str]) -> Result<Agent> {
        let mut agent = self.agent(node, args, "")?;
        agent.start()?;
        Ok(agent)
    }

    /// Starts a further agent on a node, which has one already, and waits for nothing. `name` makes its log another one.
    pub fn start_another_agent(&self, node: usize, args: &[&str], name: &str) -> Result<Agent> {
        self.start_other_release(node, args, name, "")
    }

    /// The same of a release with other layouts of these groups of maps: see [`Agent::set_other_layouts`].
    pub fn start_other_release(&self, node: usize, args: &[&str], name: &str, groups: &str) -> Result<Agent> {
        let mut agent = self.agent(node, args, name)?;
        agent.set_other_layouts(groups);
        agent.process = Some(agent.spawn()?);
        Ok(agent)
    }

    fn agent(&self, node: usize, args: &[&str], name: &str) -> Result<Agent> {
        let node = self.node(node)?;
        Ok(Agent {
            host: node.host.clone(),
            bpffs: node.bpffs.clone(),
            args: self.agent_args(node, args),
            other_layouts: String::new(),
            log: self.logs.join(format!("{}{name}.log", node.host.name)),
            process: None,
        })
    }

    /// Starts an agent on every node.
    pub fn start_agents(&self, args: &[&str]) -> Result<Vec<Agent>> {
        // At once: starting takes a moment, most of it in the kernel's verifier.
        thread::scope(|scope| {
            let start = |node| scope.spawn(move || self.start_agent(node, args));
            let starting: Vec<_> = (0..self.nodes.len()).map(start).collect();
            let join = |starting: thread::ScopedJoinHandle<'_, Result<Agent>>| match starting.join() {
                Ok(agent) => agent,
                Err(_) => bail!("starting an agent panicked"),
            };
            starting.into_iter().map(join).collect()
        })
    }

    /// The arguments an agent of this cluster gets. A flag that is given replaces the cluster's own.
    pub fn agent_args(&self, node: &Node, further: &[&str]) -> Vec<String> {
        let uplinks = self.uplinks.iter().map(|uplink| ("--uplink", (*uplink).to_owned()));
        let own = [
            ("--node-name", node.host.name.clone()),
            ("--manifests", self.manifests.path().display().to_string()),
            ("--bpffs", node.bpffs.display().to_string()),
            ("--cgroup-root", node.cgroup.display().to_string()),
            ("--healthz-bind-address", HEALTHZ.to_owned()),
        ];
        let mut args = vec!["run".to_owned()];
        for (flag, value) in own.into_iter().chain(uplinks).filter(|(flag, _)| !further.contains(flag)) {
            args.extend([flag.to_owned(), value]);
        }
        args.extend(further.iter().map(|&arg| arg.to_owned()));
        args
    }

    /// Runs `proxy-agent` on a node with exactly these arguments and gives it some time to end; then it is ended.
    /// Its exit code (none if it had to be ended) and all it printed.
    pub fn try_agent(&self, node: &Node, args: &[String], time: Duration) -> Result<(Option<i32>, String)> {
        let command = node.host.command(&agent_binary()?.to_string_lossy())?;
        self.try_command(command, args, time)
    }

    /// The same, but no longer than until this is in its output.
    pub fn try_agent_until(
        &self,
        node: &Node,
        args: &[String],
        what: &str,
        time: Duration,
    ) -> Result<(Option<i32>, String)> {
        let command = node.host.command(&agent_binary()?.to_string_lossy())?;
        self.run_command(command, args, time, Some(what))
    }

    /// The same for any command.
    pub fn try_command(
        &self,
        command: Command,
        args: &[String],
        time: Duration,
    ) -> Result<(Option<i32>, String)> {
        self.run_command(command, args, time, None)
    }

    fn run_command(
        &self,
        mut command: Command,
        args: &[String],
        time: Duration,
        enough: Option<&str>,
    ) -> Result<(Option<i32>, String)> {
        let log = tempfile::NamedTempFile::new_in(&self.logs)?;
        // With one offset: neither writes over the other.
        let (output, errors) = (log.as_file().try_clone()?, log.as_file().try_clone()?);
        command.args(args).stdin(Stdio::null()).stdout(output).stderr(errors);
        let mut process = Process::new(command.spawn()?);
        let ended = until(time, "the program to end", || {
            if let Some(status) = process.child().try_wait()? {
                return Ok(Some(Some(status)));
            }
            let is_enough =
                enough.is_some_and(|what| fs::read_to_string(log.path()).unwrap_or_default().contains(what));
            Ok(is_enough.then_some(None))
        });
        drop(process);
        Ok((ended.ok().flatten().and_then(|status| status.code()), fs::read_to_string(log.path())?))
    }
}

impl Agent {
    /// Starts it (again) and waits until it reports that it is healthy and synced with its source.
    pub fn start(&mut self) -> Result<()> {
        self.start_until("healthy and synced", |status, body| status == 200 && !body.contains(" are not "))
    }

    /// Starts it (again) and waits until `/healthz` answers as wanted.
    pub fn start_until(&mut self, what: &str, is_right: impl Fn(u16, &str) -> bool) -> Result<()> {
        let mut process = self.spawn()?;
        let what = format!("the agent of {} to be {what}", self.host.name);
        let healthy = until(START_DEADLINE, &what, || {
            if let Some(status) = process.child().try_wait()? {
                bail!("the agent of {} ended: {status}", self.host.name);
            }
            let answer = self.host.netns.get(HEALTHZ, "/healthz");
            Ok(answer.is_ok_and(|answer| is_right(answer.status, &answer.body)).then_some(()))
        });
        self.process = Some(process);
        healthy.with_context(|| format!("its log:\n{}", self.log()))
    }

    /// The arguments of its next start.
    pub fn set_args(&mut self, args: Vec<String>) {
        self.args = args;
    }

    /// From its next start on it plays a release with other layouts of some groups of maps, named with commas between: a debug build does.
    pub fn set_other_layouts(&mut self, groups: &str) {
        groups.clone_into(&mut self.other_layouts);
    }

    fn spawn(&self) -> Result<Process> {
        let log = File::options().create(true).append(true).open(&self.log)?;
        let mut command = self.host.command(&agent_binary()?.to_string_lossy())?;
        command.args(&self.args).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        // Nothing from the environment of the test may decide.
        command.env_remove("KUBECONFIG").env_remove("NODE_NAME");
        command.env("PROXY_AGENT_OTHER_LAYOUTS", &self.other_layouts);
        Ok(Process::new(command.spawn().context("cannot start the agent")?))
    }

    /// Ends it with SIGKILL.
    pub fn kill(&mut self) -> Result<()> {
        self.process.take().context("the agent is not running")?.kill()
    }

    /// Ends it with SIGTERM.
    pub fn terminate(&mut self) -> Result<()> {
        self.process.take().context("the agent is not running")?.terminate()
    }

    /// Stops it with SIGSTOP, like an agent that hangs.
    pub fn freeze(&self) -> Result<()> {
        self.process.as_ref().context("the agent is not running")?.signal(Signal::SIGSTOP)
    }

    /// Waits until it ends by itself; its exit code.
    pub fn wait(&mut self, time: Duration) -> Result<Option<i32>> {
        let mut process = self.process.take().context("the agent is not running")?;
        Ok(until(time, "the agent to end", || Ok(process.child().try_wait()?))?.code())
    }

    /// Whether its process is running.
    pub fn is_running(&mut self) -> bool {
        self.process.as_mut().is_some_and(|process| matches!(process.child().try_wait(), Ok(None)))
    }

    /// Everything it logged, over all its starts.
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_else(|error| format!("{}: {error}", self.log.display()))
    }

    /// Waits until the log has some text, and returns its line.
    pub fn wait_for_log(&self, text: &str) -> Result<String> {
        self.wait_for_log_for(Duration::from_secs(5), text)
    }

    /// The same with another deadline.
    pub fn wait_for_log_for(&self, time: Duration, text: &str) -> Result<String> {
        until(time, &format!("{text:?} in the log of {}", self.host.name), || {
            Ok(self.log().lines().find(|line| line.contains(text)).map(str::to_owned))
        })
    }

    /// Runs `proxy-agent debug ...` on its node; returns the output.
    pub fn debug(&self, args: &[&str]) -> Result<String> {
        self.tool("debug", args)
    }

    /// Runs `proxy-agent cleanup` on its node.
    pub fn cleanup(&self) -> Result<String> {
        self.cleanup_with(&[])
    }

    /// The same with further arguments.
    pub fn cleanup_with(&self, args: &[&str]) -> Result<String> {
        self.tool("cleanup", args)
    }

    fn tool(&self, what: &str, args: &[&str]) -> Result<String> {
        let mut command = self.host.command(&agent_binary()?.to_string_lossy())?;
        command.arg(what).arg("--bpffs").arg(&self.bpffs).args(args);
        pipe(&mut command, "")
    }

    /// Leaves it running, until the cluster is taken down.
    pub fn detach(mut self) {
        if let Some(process) = self.process.take() {
            process.detach();
        }
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("--- log of the agent of {}\n{}---", self.host.name, self.log());
        }
    }
}
