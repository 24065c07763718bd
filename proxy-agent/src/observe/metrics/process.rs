//! The agent's process, under the names that every Prometheus client library uses.

use std::fmt;

use procfs::{
    ProcResult,
    process::{LimitValue, Process as Proc},
};
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric as _},
    metrics::{MetricType, counter::ConstCounter, gauge::ConstGauge},
};

/// Read from `/proc/self` at each scrape.
#[derive(Debug)]
pub(super) struct Process;

struct Figures {
    cpu_seconds: f64,
    start_seconds: f64,
    resident_bytes: u64,
    virtual_bytes: u64,
    open_fds: usize,
    max_fds: u64,
}

impl Figures {
    fn read() -> ProcResult<Self> {
        let process = Proc::myself()?;
        let stat = process.stat()?;
        let ticks = procfs::ticks_per_second() as f64;
        let max_fds = match process.limits()?.max_open_files.soft_limit {
            LimitValue::Value(limit) => limit,
            LimitValue::Unlimited => u64::MAX,
        };
        Ok(Self {
            cpu_seconds: (stat.utime + stat.stime) as f64 / ticks,
            start_seconds: procfs::boot_time_secs()? as f64 + stat.starttime as f64 / ticks,
            resident_bytes: stat.rss * procfs::page_size(),
            virtual_bytes: stat.vsize,
            open_fds: process.fd_count()?,
            max_fds,
        })
    }
}

impl Collector for Process {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), fmt::Error> {
        // Without /proc there is nothing to show.
        let Ok(figures) = Figures::read() else { return Ok(()) };
        ConstCounter::new(figures.cpu_seconds).encode(encoder.encode_descriptor(
            "process_cpu_seconds",
            "User and system CPU time spent",
            None,
            MetricType::Counter,
        )?)?;
        for (name, help, value) in [
            (
                "process_start_time_seconds",
                "When the process started, since the epoch",
                figures.start_seconds,
            ),
            ("process_resident_memory_bytes", "Memory in RAM", figures.resident_bytes as f64),
            ("process_virtual_memory_bytes", "Memory mapped", figures.virtual_bytes as f64),
            ("process_open_fds", "Open file descriptors", figures.open_fds as f64),
            ("process_max_fds", "File descriptors that may be open", figures.max_fds as f64),
        ] {
            ConstGauge::new(value).encode(encoder.encode_descriptor(
                name,
                help,
                None,
                MetricType::Gauge,
            )?)?;
        }
        Ok(())
    }
}
