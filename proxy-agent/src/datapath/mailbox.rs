//! A map that carries a request to the agent and its answer back. It is pinned for as long as the request lives.

use std::{fs, io, path::PathBuf};

use anyhow::{Context as _, Result, bail};
use aya::maps::{Array, Map, MapData};

use super::pins::Pins;

/// The name of its pin.
const NAME: &str = "log_filter";

/// Text, with zeros behind it.
type Text = [u8; 2048];

const REQUEST: u32 = 0;
const ANSWER: u32 = 1;
/// How many texts there are.
const TEXTS: u32 = 2;

/// A request.
pub(crate) struct Mailbox {
    map: Array<MapData, Text>,
    /// To be removed with the request, by the one that made it.
    pin: Option<PathBuf>,
}

impl Mailbox {
    /// Makes a request. One that was left by a process that was killed is replaced.
    ///
    /// # Errors
    /// When the kernel refuses, or the request is too long.
    pub(crate) fn send(pins: &Pins, request: &str) -> Result<Self> {
        const BPF_MAP_TYPE_ARRAY: u32 = 2;
        let path = pins.map(NAME);
        let definition =
            aya_obj::Map::new_from_params(BPF_MAP_TYPE_ARRAY, 4, size_of::<Text>() as u32, TEXTS, 0);
        let mut map = Map::Array(MapData::create(definition, NAME, None).context("cannot make a map")?);
        let mut texts: Array<&mut MapData, Text> = (&mut map).try_into()?;
        // Before it is pinned, so that the agent sees it whole.
        texts.set(REQUEST, text(request)?, 0)?;
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("cannot remove {}", path.display()));
            }
            _ => {}
        }
        map.pin(&path).with_context(|| format!("cannot pin {}", path.display()))?;
        Ok(Self { map: map.try_into()?, pin: Some(path) })
    }

    /// The reply, when there is one.
    pub(crate) fn answer(&self) -> Result<Option<String>> {
        let answer = string(&self.map.get(&ANSWER, 0)?);
        Ok((!answer.is_empty()).then_some(answer))
    }

    /// The request that waits for a reply.
    pub(crate) fn receive(pins: &Pins) -> Result<Option<(Self, String)>> {
        let path = pins.map(NAME);
        if !path.exists() {
            return Ok(None);
        }
        let data = MapData::from_pin(&path)?;
        let info = data.info()?;
        if (info.value_size() as usize, info.max_entries()) != (size_of::<Text>(), TEXTS) {
            bail!("{} is of another release", path.display());
        }
        let mailbox = Self { map: Map::Array(data).try_into()?, pin: None };
        if mailbox.answer()?.is_some() {
            return Ok(None);
        }
        let request = string(&mailbox.map.get(&REQUEST, 0)?);
        Ok(Some((mailbox, request)))
    }

    /// Replies; a text that is too long is cut.
    pub(crate) fn reply(mut self, answer: &str) -> Result<()> {
        let end = (0..size_of::<Text>()).rev().find(|end| answer.is_char_boundary(*end)).unwrap_or(0);
        Ok(self.map.set(ANSWER, text(&answer[..end])?, 0)?)
    }
}

impl Drop for Mailbox {
    fn drop(&mut self) {
        if let Some(path) = &self.pin
            && let Err(error) = fs::remove_file(path)
        {
            tracing::debug!("{}: {error}", path.display());
        }
    }
}

fn text(from: &str) -> Result<Text> {
    let mut text = [0; size_of::<Text>()];
    // One zero at least.
    if from.len() >= text.len() {
        bail!("longer than {} bytes", text.len() - 1);
    }
    text[..from.len()].copy_from_slice(from.as_bytes());
    Ok(text)
}

fn string(text: &Text) -> String {
    let end = text.iter().position(|byte| *byte == 0).unwrap_or(text.len());
    String::from_utf8_lossy(&text[..end]).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_come_back_and_long_ones_are_refused() {
        for request in ["", "info", "proxy_agent=debug,größer=trace"] {
            assert_eq!(string(&text(request).unwrap()), request);
        }
        assert!(text(&"x".repeat(size_of::<Text>() - 1)).is_ok());
        assert!(text(&"x".repeat(size_of::<Text>())).is_err());
    }
}
