//! What a process takes of the machine, as the operating system tells.

use std::fs;

/// What a process takes now.
#[derive(Clone, Copy, Debug, Default)]
pub struct Usage {
    /// The most memory that was resident, in KiB.
    pub peak_kib: u64,
    /// What is now.
    pub resident_kib: u64,
    pub descriptors: usize,
    /// So long it has had a processor, in hundredths of a second, whatever the kernel's own clock.
    pub processor_ticks: u64,
}

impl Usage {
    /// Nothing if the process has ended meanwhile.
    pub fn of(process_id: i32) -> Option<Self> {
        let status = fs::read_to_string(format!("/proc/{process_id}/status")).ok()?;
        let kib = |name| {
            let line = status.lines().find_map(|line| line.strip_prefix(name))?;
            line.trim().trim_end_matches(" kB").parse().ok()
        };
        let stat = fs::read_to_string(format!("/proc/{process_id}/stat")).ok()?;
        // The name before it may hold anything.
        let (_, fields) = stat.rsplit_once(") ")?;
        let mut ticks = fields.split(' ').skip(11).map(str::parse::<u64>);
        Some(Self {
            peak_kib: kib("VmHWM:")?,
            resident_kib: kib("VmRSS:")?,
            descriptors: fs::read_dir(format!("/proc/{process_id}/fd")).ok()?.count(),
            processor_ticks: ticks.next()?.ok()? + ticks.next()?.ok()?,
        })
    }
}
