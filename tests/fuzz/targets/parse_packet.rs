#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| proxy_fuzz_checks::parse_packet(bytes));
