//! `debug counters`.

use anyhow::Result;
use proxy_common::layout::counter::Counter;
use serde::Serialize;

use crate::{
    datapath::{maps, pins::Pins},
    output::Row,
};

#[derive(Debug, Serialize)]
pub(super) struct CounterRow {
    name: &'static str,
    value: u64,
    help: &'static str,
}

impl Row for CounterRow {
    const HEADER: &'static [&'static str] = &["NAME", "VALUE", "MEANING"];

    fn cells(&self) -> Vec<String> {
        vec![self.name.to_owned(), self.value.to_string(), self.help.to_owned()]
    }
}

pub(super) fn read(pins: &Pins) -> Result<Vec<CounterRow>> {
    Ok(rows(maps::counters(pins)?))
}

fn rows(counters: Vec<(Counter, u64)>) -> Vec<CounterRow> {
    let row =
        |(counter, value): (Counter, u64)| CounterRow { name: counter.name(), value, help: counter.help() };
    counters.into_iter().map(row).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::{OutputFormat, render};

    #[test]
    fn counters_explain_themselves() {
        let text = render(&rows(vec![(Counter::FlowNew, 7)]), OutputFormat::Table).unwrap();
        assert!(text.contains("flow_new   7       New flows whose packets are translated."), "{text}");
    }
}
