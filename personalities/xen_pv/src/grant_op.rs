//! The hypercall `grant_table_op`: the table itself.

use crate::{
    Domain,
    grants::Version,
    guest,
    layout::{GRANT_FRAMES, STATUS_FRAMES},
    vcpus::Vcpu,
};
use engine::CpuView;
use guest_mem::PAGE;
use xen_abi::{
    DomainId,
    errno::Errno,
    grant_table::{GetStatusFrames, GetVersion, QuerySize, SetupTable, op, status},
    hypercall,
};

/// Entries of version 2 that have their words in a page.
const STATUS_A_PAGE: u64 = PAGE / 2;

/// `GNTST_*` for a call about this domain's table.
fn about(domain: DomainId) -> i16 {
    match Domain::itself(domain) {
        Ok(()) => status::OKAY,
        Err(Errno::Srch) => status::BAD_DOMAIN,
        Err(_) => status::PERMISSION_DENIED,
    }
}

/// Tells the domain of so many frames from one on.
fn list(cpu: &mut dyn CpuView, at: u64, first: u64, count: u64) -> Result<(), Errno> {
    for index in 0..count {
        guest::write(cpu, guest::element::<u64>(at, index)?, &(first + index))?;
    }
    Ok(())
}

impl Domain {
    pub fn grant_table_op(
        &mut self,
        vcpu: &Vcpu,
        cpu: &mut dyn CpuView,
        operation: u64,
        at: u64,
        count: u64,
    ) -> Result<u64, Errno> {
        if count != 1 {
            return Err(Errno::Inval);
        }
        match operation {
            op::SETUP_TABLE => {
                let mut call: SetupTable = guest::read(cpu, at)?;
                call.status = about(call.domain);
                if u64::from(call.frames) > GRANT_FRAMES {
                    call.status = status::GENERAL_ERROR;
                }
                if call.status == status::OKAY {
                    self.grant_frames = self.grant_frames.max(call.frames);
                    list(cpu, call.list, self.layout.grants() / PAGE, call.frames.into())?;
                }
                guest::write(cpu, at, &call)?;
            }
            op::QUERY_SIZE => {
                let mut call: QuerySize = guest::read(cpu, at)?;
                call.status = about(call.domain);
                if call.status == status::OKAY {
                    (call.frames, call.max_frames) = (self.grant_frames, GRANT_FRAMES as u32);
                }
                guest::write(cpu, at, &call)?;
            }
            op::SET_VERSION => {
                let wanted: u32 = guest::read(cpu, at)?;
                let result =
                    Version::new(wanted).ok_or(Errno::Inval).map(|new| self.set_grant_version(new));
                // Whatever becomes of it.
                guest::write(cpu, at, &(self.grant_version as u32))?;
                result??;
            }
            op::GET_VERSION => {
                let call: GetVersion = guest::read(cpu, at)?;
                Self::itself(call.domain)?;
                let version = self.grant_version as u32;
                guest::write(cpu, at, &GetVersion { version, ..call })?;
            }
            op::GET_STATUS_FRAMES => {
                let mut call: GetStatusFrames = guest::read(cpu, at)?;
                call.status = self.get_status_frames(cpu, &call)?;
                guest::write(cpu, at, &call)?;
            }
            other => return Err(self.not_known(vcpu, hypercall::GRANT_TABLE_OP, other)),
        }
        Ok(0)
    }

    /// Frames of the words for the entries that there are, in version 2.
    fn get_status_frames(
        &self,
        cpu: &mut dyn CpuView,
        call: &GetStatusFrames,
    ) -> Result<i16, Errno> {
        let entries = u64::from(self.grant_frames) * PAGE / self.grant_version.entry_size();
        let there = entries.div_ceil(STATUS_A_PAGE).min(STATUS_FRAMES);
        match about(call.domain) {
            status::OKAY => {}
            refused => return Ok(refused),
        }
        if self.grant_version != Version::Two || u64::from(call.frames) > there {
            return Ok(status::GENERAL_ERROR);
        }
        list(cpu, call.list, self.layout.grant_status() / PAGE, call.frames.into())?;
        Ok(status::OKAY)
    }
}
