//! Starting, living in and ending a container.

mod support;

use support::Machine;

#[test]
fn a_container_starts_runs_commands_and_ends() {
    let Some(machine) = Machine::new("a_container_starts") else { return };
    let mut sandbox = machine.start();
    assert_eq!(sandbox.root("id -u; hostname; echo $$").ok().lines().next(), Some("0"));
    assert_eq!(sandbox.user("id -u; cd /workspace && echo x > f && cat f").ok(), "1000\nx\n");
    println!("{}", sandbox.root("mount; ls -la / /dev /run /run/sinew /proc/1/; cat /proc/self/status /proc/self/cgroup; cat /etc/hosts; ulimit -a").output);
    machine.kill(&mut sandbox);
}
