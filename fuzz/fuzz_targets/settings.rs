#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| election_agent_fuzz::run("settings", data));
