"""What the package does on a device other than the CPU. The device is made up: see `second_device.py`."""

import json
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).with_name("second_device.py")


def test_training_maps_and_measures_give_the_cpu_s_numbers_on_another_device_and_mix_no_devices():
    done = subprocess.run([sys.executable, SCRIPT], capture_output=True, text=True, check=True)
    outcomes = json.loads(done.stdout)
    assert len(outcomes) > 30
    assert {name: said for name, said in outcomes.items() if said != "the CPU's numbers"} == {}
