"""What sensors and schedules share: whether they run from the start, and how a run is known by its key."""

import dagster as dg

from babylon_rl.settings import get_settings

RUN_KEY = "dagster/run_key"

_ON = get_settings().sensors == "on"
SENSOR_STATUS = dg.DefaultSensorStatus.RUNNING if _ON else dg.DefaultSensorStatus.STOPPED
SCHEDULE_STATUS = dg.DefaultScheduleStatus.RUNNING if _ON else dg.DefaultScheduleStatus.STOPPED
