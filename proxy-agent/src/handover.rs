//! One agent at a time writes the maps and links below a `--bpffs`: the one that holds an exclusive `flock` of that directory. The kernel
//! releases it when the process ends, however it ends. A bpf file system holds no ordinary files, but its directories can be locked,
//! and the lock is the same from every container that mounts the host's.
//!
//! An agent that finds the directory locked stands by: it loads its programs, lists the objects, and then requests the lock by
//! making the directory `successor` and locking that. The running agent sees it by inotify, stops writing, and releases the
//! lock. The successor removes `successor` when it serves. So the newest agent wins, and several queue up.

mod lock;
mod request;

pub(crate) use self::{
    lock::{Lock, Waiting, is_free},
    request::{Holder, Notice, Request},
};

#[cfg(test)]
mod tests;
