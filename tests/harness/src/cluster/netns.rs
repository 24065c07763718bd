//! Network namespaces, made and configured with iproute2.

use std::{
    fs::{self, File},
    io::Write,
    os::unix::process::CommandExt,
    path::PathBuf,
    process::{Command, Stdio},
    thread,
};

use anyhow::{Context, Result, anyhow, bail};
use nix::sched::{CloneFlags, setns};

const RUN_NETNS: &str = "/run/netns";

/// A named network namespace, as `ip netns` has them.
#[derive(Clone, Debug)]
pub struct Netns {
    name: String,
}

impl Netns {
    /// Makes the namespace.
    pub fn create(name: &str) -> Result<Self> {
        run("ip", &["netns", "add", name])?;
        Ok(Self { name: name.to_owned() })
    }

    /// Names of all namespaces that `ip netns` knows.
    pub fn list() -> Result<Vec<String>> {
        match fs::read_dir(RUN_NETNS) {
            Ok(entries) => {
                entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect()
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
            Err(error) => Err(error).context(RUN_NETNS),
        }
    }

    /// Removes a namespace by name. Its devices go with it as soon as no process is left in it.
    pub fn remove(name: &str) -> Result<()> {
        let gone = || !PathBuf::from(RUN_NETNS).join(name).exists();
        // Another run may be clearing up the same remains.
        run("ip", &["netns", "del", name]).or_else(|error| if gone() { Ok(()) } else { Err(error) })
    }

    /// The name, as `ip -n` takes it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The file that stands for the namespace.
    pub fn path(&self) -> PathBuf {
        PathBuf::from(RUN_NETNS).join(&self.name)
    }

    /// Opens it for `setns`.
    pub fn open(&self) -> Result<File> {
        let path = self.path();
        File::open(&path).with_context(|| path.display().to_string())
    }

    /// Runs a closure on a separate thread inside the namespace. Sockets it makes stay in it.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        let file = self.open()?;
        thread::scope(|scope| {
            scope
                .spawn(move || {
                    setns(&file, CloneFlags::CLONE_NEWNET)?;
                    work()
                })
                .join()
                .map_err(|_| anyhow!("a thread in namespace {} panicked", self.name))?
        })
    }

    /// Runs lines of `ip` commands (without the leading `ip`) in the namespace.
    pub fn ip(&self, lines: &[String]) -> Result<()> {
        self.ip_with(&[], lines)
    }

    /// The same with options like `-6` for all of them.
    pub fn ip_with(&self, options: &[&str], lines: &[String]) -> Result<()> {
        let text = lines.join("\n") + "\n";
        pipe(Command::new("ip").args(options).args(["-n", &self.name, "-batch", "-"]), &text)
            .with_context(|| format!("ip {} -n {} -batch:\n{text}", options.join(" "), self.name))?;
        Ok(())
    }

    /// Feeds a script to `nft` in the namespace and returns its output.
    pub fn nft(&self, script: &str) -> Result<String> {
        pipe(self.command("nft")?.args(["-f", "-"]), script)
            .with_context(|| format!("nft in {}:\n{script}", self.name))
    }

    /// Runs a program in the namespace with this as its input.
    pub fn feed(&self, program: &str, args: &[&str], input: &str) -> Result<String> {
        pipe(self.command(program)?.args(args), input)
    }

    /// Writes `net.*` kernel parameters, given as in `sysctl` but with slashes: `ipv4/ip_forward`.
    pub fn sysctl(&self, settings: &[(&str, &str)]) -> Result<()> {
        self.run(|| {
            for (name, value) in settings {
                let path = format!("/proc/sys/net/{name}");
                fs::write(&path, value).with_context(|| path.clone())?;
            }
            Ok(())
        })
    }

    /// A command that will run in the namespace. Unlike with `ip netns exec`, mounts stay unchanged: that one
    /// mounts a new /sys, which hides bpffs and cgroups.
    pub fn command(&self, program: &str) -> Result<Command> {
        let file = self.open()?;
        let mut command = Command::new(program);
        let enter = move || setns(&file, CloneFlags::CLONE_NEWNET).map_err(std::io::Error::from);
        // SAFETY: setns is a plain system call: it neither allocates nor takes a lock.
        unsafe { command.pre_exec(enter) };
        Ok(command)
    }
}

/// Runs a program to its end; its error output becomes the error.
pub(crate) fn run(program: &str, args: &[&str]) -> Result<()> {
    pipe(Command::new(program).args(args), "").with_context(|| format!("{program} {}", args.join(" ")))?;
    Ok(())
}

/// Runs a command with the given standard input and returns its standard output.
pub fn pipe(command: &mut Command, input: &str) -> Result<String> {
    let program = command.get_program().to_string_lossy().into_owned();
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start `{program}`; `cargo xtask setup` installs it"))?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(input.as_bytes())?;
    }
    let output = child.wait_with_output()?;
    if !output.status.success() {
        bail!("{program}: {}: {}", output.status, String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
