//! Removes unused sections from an object: the agent gives the kernel types (BTF), never debug information (DWARF), and lines of source only
//! for the verifier's log of a program that the kernel refuses.

use anyhow::{Context, Result, bail};
use object::{
    build::elf::{Builder, SectionData},
    elf,
};

/// The types, and records of functions and lines.
const TYPES: &str = ".BTF";
const RECORDS: &str = ".BTF.ext";

/// The object without debug information. The types that were made from it stay.
pub(super) fn debug_information(object: &[u8]) -> Result<Vec<u8>> {
    rewritten(object, |builder| {
        for section in &mut builder.sections {
            let name = String::from_utf8_lossy(&section.name);
            // The agent's loader reads types and records without relocating them.
            let of = name.strip_prefix(".rel").unwrap_or(&name);
            section.delete = of.starts_with(".debug_") || (of != name && [TYPES, RECORDS].contains(&of));
        }
        Ok(())
    })
}

/// The object without lines of source.
pub(super) fn lines(object: &[u8]) -> Result<Vec<u8>> {
    rewritten(object, |builder| {
        let mut sections = builder.sections.iter_mut();
        let records = sections.find(|section| section.name.as_slice() == RECORDS.as_bytes());
        let records = records.with_context(|| format!("the object has no section {RECORDS}"))?;
        let SectionData::Data(data) = &mut records.data else { bail!("{RECORDS} has no data") };
        *data = without_lines(data.as_slice())?.into();
        Ok(())
    })
}

/// Ends the records (`struct btf_ext_header` and its subsections) behind those of functions.
fn without_lines(records: &[u8]) -> Result<Vec<u8>> {
    const HEADER_LENGTH: usize = 4;
    const FUNCTIONS: usize = 8;
    const LINES: usize = 16;
    const RELOCATIONS: usize = 24;
    let word = |at: usize| -> Result<usize> {
        let bytes = records.get(at..at + 4).with_context(|| format!("{RECORDS} is too short"))?;
        Ok(u32::from_le_bytes(bytes.try_into()?) as usize)
    };
    let header = word(HEADER_LENGTH)?;
    let (functions, length) = (word(FUNCTIONS)?, word(FUNCTIONS + 4)?);
    let has_relocations = header > RELOCATIONS;
    if has_relocations && word(RELOCATIONS + 4)? > 0 {
        bail!(
            "{RECORDS} has CO-RE relocations, which need the kernel's types: the agent does not read these"
        );
    }
    let end = header + functions + length;
    if functions > word(LINES)? {
        bail!("{RECORDS} has lines before functions");
    }
    let mut kept = records.get(..end).with_context(|| format!("{RECORDS} is too short"))?.to_vec();
    let behind = u32::try_from(functions + length)?.to_le_bytes();
    for at in [Some(LINES), has_relocations.then_some(RELOCATIONS)].into_iter().flatten() {
        kept[at..at + 4].copy_from_slice(&behind);
        kept[at + 4..at + 8].fill(0);
    }
    Ok(kept)
}

fn rewritten<'data>(
    object: &'data [u8],
    change: impl FnOnce(&mut Builder<'data>) -> Result<()>,
) -> Result<Vec<u8>> {
    let mut builder = Builder::read(object).context("the object is not an ELF file")?;
    change(&mut builder)?;
    // LLVM writes one table of strings for symbols and sections; the builder wants one for sections.
    if !builder.sections.iter().any(|section| matches!(section.data, SectionData::SectionString)) {
        let names = builder.sections.add();
        names.name = b".shstrtab".as_slice().into();
        names.sh_type = elf::SHT_STRTAB;
        names.sh_addralign = 1;
        names.data = SectionData::SectionString;
    }
    let mut written = Vec::new();
    builder.write(&mut written).context("cannot write the object")?;
    Ok(written)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Records with a header of so many bytes, two words for functions, three for lines, and these for relocations.
    fn records(relocations: u32) -> Vec<u8> {
        let words: [u32; 8] = [0x0100_eb9f, 32, 0, 8, 8, 12, 20, relocations];
        words.iter().chain(&[1, 2, 3, 4, 5]).flat_map(|word| word.to_le_bytes()).collect()
    }

    #[test]
    fn lines_go_and_functions_stay() {
        let kept = without_lines(&records(0)).unwrap();
        let words: Vec<u32> =
            kept.chunks(4).map(|word| u32::from_le_bytes(word.try_into().unwrap())).collect();
        assert_eq!(words, [0x0100_eb9f, 32, 0, 8, 8, 0, 8, 0, 1, 2]);
    }

    #[test]
    fn relocations_are_an_error() {
        assert!(without_lines(&records(4)).is_err());
        assert!(without_lines(b"short").is_err());
    }
}
